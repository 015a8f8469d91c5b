package d1client

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"
)

const (
	userAgentName     = "cardorder"
	correlationHeader = "X-Correlation-Id"

	// fallbackTimeout bounds a call whose context has no deadline. Nothing waits
	// for D1 for ever.
	fallbackTimeout = time.Minute
)

// Longest ids, in characters A-Z a-z 0-9 _ -.
const (
	maxID     = 64
	maxCardID = 48
)

// Header values of every call; nobody changes them.
var jsonType, userAgentHeader = []string{"application/json"}, []string{userAgentName}

// isID tells whether s is 1 to n characters of A-Z a-z 0-9 _ -. It is asked several times
// a call, where a regular expression would show.
func isID(s string, n int) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c >= '0' && c <= '9', c >= 'A' && c <= 'Z', c >= 'a' && c <= 'z', c == '_', c == '-':
		default:
			return false
		}
	}
	return s != "" && len(s) <= n
}

var errTooLong = errors.New("answer is too long")

// request is one call before it has a token.
type request struct {
	method, url   string
	correlationID string
	body          []byte
	beforeSend    func() error
	maxAnswer     int64 // bytes
}

// result is what became of a request. Status 0 means that no HTTP answer came;
// then sent tells whether a byte of the request may have been written.
type result struct {
	status int
	header http.Header
	body   []byte

	sent   bool
	reason Reason // without an answer
	err    error  // no answer, or the answer's body could not be read
}

// exchange sends r. After a 401 it does so once more, with a new token: that of
// the first try may have been revoked before its time.
func (c *Client) exchange(ctx context.Context, r request) result {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, fallbackTimeout)
		defer cancel()
	}
	token, failed := c.token(ctx)
	if token == nil {
		return failed
	}
	first := c.send(ctx, r, token)
	if first.status != http.StatusUnauthorized {
		return first
	}
	// Not done after a second 401: whoever comes next finds out with the token at
	// hand, at the price of one fetch a call instead of two.
	c.tokens.drop(token)
	if token, failed = c.token(ctx); token == nil {
		return failed
	}
	return c.send(ctx, r, token)
}

func (c *Client) token(ctx context.Context) (*accessToken, result) {
	token, err := c.tokens.get(ctx)
	if err == nil {
		return token, result{}
	}
	reason := ReasonToken
	if ce, ok := errors.AsType[*callError](err); ok {
		reason = ce.reason
	}
	return nil, result{reason: reason, err: fmt.Errorf("d1client: %w", err)}
}

// send makes one HTTP request, and knows whether a byte of it may have left.
//
// The proof that none has is httptrace's GotConn, which the transport calls in
// this goroutine before it hands the request to a connection: no GotConn, no byte.
// The transport starts over by itself (GetConn again) only when a kept connection
// took no byte: a POST without Idempotency-Key is otherwise never repeated.
// http.Client is left out because it would follow redirects.
func (c *Client) send(ctx context.Context, r request, token *accessToken) result {
	// Ended on return, after the body has been read, and by a refusal to send.
	callCtx, cancel := context.WithCancel(ctx)
	defer cancel()

	var (
		sent    bool
		refusal error
	)
	// One trace of all: several are put together by reflection, for every call.
	trace, handshakeFailed := handshakeTrace()
	trace.GetConn = func(string) { sent = false }
	trace.GotConn = func(info httptrace.GotConnInfo) {
		ended := ctx.Err() != nil
		if !ended && r.beforeSend != nil {
			refusal = r.beforeSend()
		}
		if !ended && refusal == nil {
			sent = true
			return
		}
		// The transport cannot be told no at this point, so its connection is
		// taken away: the write fails at its first byte. The cancel keeps it from
		// trying the next connection.
		_ = info.Conn.Close()
		cancel()
	}
	traced := httptrace.WithClientTrace(callCtx, trace)

	req, err := http.NewRequestWithContext(traced, r.method, r.url, bytes.NewReader(r.body))
	if err != nil {
		return result{reason: ReasonInvalidCall, err: errors.New("d1client: request cannot be made")}
	}
	req.Header = http.Header{
		"Authorization": {"Bearer " + token.secret.reveal()}, "Accept": jsonType, "User-Agent": userAgentHeader,
		correlationHeader: {r.correlationID},
	}
	if len(r.body) > 0 {
		req.Header["Content-Type"] = jsonType
	}

	resp, err := c.transport.RoundTrip(req)
	if resp != nil {
		defer func() { _ = resp.Body.Close() }()
	}
	switch {
	case refusal != nil:
		return result{reason: ReasonNotSent, err: fmt.Errorf("d1client: not sent: %w", refusal)}
	case err != nil:
		fe := faultError(ctx, err, sent, handshakeFailed())
		return result{sent: sent, reason: fe.reason, err: fmt.Errorf("d1client: %w", fe.err)}
	}

	res := result{status: resp.StatusCode, header: resp.Header, sent: true}
	// The body of a 1xx or 3xx says nothing, and that of a 101 does not end with ctx.
	if k := resp.StatusCode / 100; k == 2 || k == 4 || k == 5 {
		res.body, err = readAnswer(resp.Body, r.maxAnswer)
		if err != nil {
			res.err = fmt.Errorf("d1client: answer: %w", faultError(ctx, err, true, false).err)
		}
	}
	return res
}

// readAnswer returns the whole body or an error: half an answer is none.
func readAnswer(body io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(body, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, errTooLong
	}
	return b, nil
}

// watchHandshake returns a context whose failed TLS handshakes are told by failed.
func watchHandshake(ctx context.Context) (watched context.Context, failed func() bool) {
	trace, failed := handshakeTrace()
	return httptrace.WithClientTrace(ctx, trace), failed
}

// handshakeTrace notes failed TLS handshakes. They run in the transport's goroutines,
// hence the atomic.
func handshakeTrace() (trace *httptrace.ClientTrace, failed func() bool) {
	var flag atomic.Bool
	return &httptrace.ClientTrace{
		TLSHandshakeDone: func(_ tls.ConnectionState, err error) {
			if err != nil {
				flag.Store(true)
			}
		},
	}, flag.Load
}

// faultError gives the reason of a call without an answer. Once the request was
// sent, err may quote what the peer wrote, which may quote the order: then only
// kinds of errors known to be free of content are kept.
func faultError(ctx context.Context, err error, sent, handshakeFailed bool) *callError {
	// ctx is asked, not err: a dial that ran into its own time limit also says
	// context.DeadlineExceeded.
	switch ctxErr := ctx.Err(); {
	case errors.Is(ctxErr, context.DeadlineExceeded):
		return &callError{ReasonTimeout, ctxErr}
	case ctxErr != nil:
		return &callError{ReasonCancelled, ctxErr}
	case handshakeFailed || isTLSError(err):
		return &callError{ReasonTLS, fmt.Errorf("tls: %w", err)}
	case !sent:
		return &callError{ReasonDial, err}
	case isCut(err):
		return &callError{ReasonCut, fmt.Errorf("connection cut: %w", err)}
	case errors.Is(err, errTooLong):
		return &callError{ReasonUnreadable, err}
	default:
		return &callError{ReasonUnreadable, errors.New("not a readable HTTP answer")}
	}
}

// isTLSError knows an alert by its operation: with TLS 1.3 a rejected client
// certificate shows only when the answer is read, after the handshake.
func isTLSError(err error) bool {
	if op, ok := errors.AsType[*net.OpError](err); ok && (op.Op == "remote error" || op.Op == "local error") {
		return true
	}
	_, verification := errors.AsType[*tls.CertificateVerificationError](err)
	_, record := errors.AsType[tls.RecordHeaderError](err)
	_, authority := errors.AsType[x509.UnknownAuthorityError](err)
	return verification || record || authority
}

func isDialError(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && (op.Op == "dial" || op.Op == "proxyconnect")
}

func isCut(err error) bool {
	_, ok := errors.AsType[net.Error](err)
	return ok || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		err.Error() == "http: server closed idle connection" // net/http does not export it
}

// correlation returns id, or a random one when id is not what D1 accepts.
func correlation(id string) string {
	if isID(id, maxID) {
		return id
	}
	return rand.Text()
}
