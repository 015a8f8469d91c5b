package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"time"
)

// request is one call of the API. Every one of them may be repeated.
type request struct {
	doing  string // for errors
	method string
	path   string // below the issuer
	query  url.Values
	header http.Header
	body   []byte
	upload *Upload             // instead of body
	again  func(*Problem) bool // problems that pass, besides those of every call
}

var (
	errNotExpected = errors.New("the answer is not what the API is known to say")
	errStill       = errors.New("nothing moved for too long")
)

// networkError is an attempt without a usable answer. Its text is free of what
// the peer wrote, which may be what it was sent; the cause is there to unwrap.
type networkError struct {
	text  string
	cause error
	final bool // will not go away by itself
}

func (e *networkError) Error() string { return e.text }
func (e *networkError) Unwrap() error { return e.cause }

// get makes a call and decodes the answer.
func get[T any](ctx context.Context, c *Client, r *request) (*T, error) {
	into := new(T)
	if _, err := c.ask(ctx, r, into); err != nil {
		return nil, err
	}
	return into, nil
}

// ask makes a call, decodes the answer, and returns its header.
func (c *Client) ask(ctx context.Context, r *request, into any) (http.Header, error) {
	var header http.Header
	err := c.repeat(ctx, r, func() error {
		a, err := c.send(ctx, r)
		if err != nil {
			return err
		}
		defer a.close()
		header = a.header
		return a.decode(into)
	})
	return header, err
}

// repeat tries until it works, cannot work, or may not be tried any more.
func (c *Client) repeat(ctx context.Context, r *request, try func() error) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("cardorder: %s: %w", r.doing, err)
	}
	var last error
	for n := 1; ; n++ {
		err := try()
		if err == nil {
			return nil
		}
		pause, ok := c.pause(r, err, n)
		switch {
		case last != nil && errors.Is(err, ctx.Err()):
			return fmt.Errorf("cardorder: %s: %w; attempt %d: %w", r.doing, err, n-1, last)
		case !ok || c.maxAttempts == 1:
			return fmt.Errorf("cardorder: %s: %w", r.doing, err)
		case n == c.maxAttempts:
			return fmt.Errorf("cardorder: %s: gave up after %d attempts: %w", r.doing, n, err)
		}
		if !wait(ctx, pause) {
			return fmt.Errorf("cardorder: %s: %w; attempt %d: %w", r.doing, ctx.Err(), n, err)
		}
		last = err
	}
}

// pause tells how long to wait after the nth attempt, or that another one is of
// no use.
func (c *Client) pause(r *request, err error, n int) (_ time.Duration, again bool) {
	var asked time.Duration
	if p, ok := errors.AsType[*Problem](err); ok {
		switch p.Status {
		case http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
			http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		default:
			if r.again == nil || !r.again(p) {
				return 0, false
			}
		}
		asked = min(p.RetryAfter, c.maxWait)
	} else if e, ok := errors.AsType[*networkError](err); !ok || e.final {
		return 0, false
	}
	backoff := c.backoff
	for i := 1; i < n && backoff < c.maxWait; i++ {
		backoff *= 2
	}
	// Full jitter, also on top of what was asked for: many callers got that answer.
	return asked + rand.N(min(backoff, c.maxWait)+1), true
}

// wait waits, and tells whether ctx lasted.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// patience ends an attempt that does not move.
type patience struct {
	timer *time.Timer
	limit time.Duration
}

func (p *patience) stop()    { p.timer.Stop() }
func (p *patience) restart() { p.timer.Reset(p.limit) }

// attempt is one try of a request, and its answer.
type attempt struct {
	parent   context.Context // of the call
	ctx      context.Context
	end      context.CancelCauseFunc
	patience *patience
	file     *file // of an upload
	header   http.Header
	body     io.ReadCloser
}

// send makes one attempt, which is to be closed unless there is an error. An
// answer that says no is a *Problem.
func (c *Client) send(ctx context.Context, r *request) (_ *attempt, err error) {
	a := &attempt{parent: ctx, patience: &patience{limit: c.timeout}}
	a.ctx, a.end = context.WithCancelCause(ctx)
	a.patience.timer = time.AfterFunc(c.timeout, func() { a.end(errStill) })
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	target := c.issuerURL + r.path
	if len(r.query) > 0 {
		target += "?" + r.query.Encode()
	}
	req, err := http.NewRequestWithContext(a.ctx, r.method, target, bytes.NewReader(r.body))
	if err != nil {
		return nil, errors.New("the request cannot be made") // err quotes it
	}
	if r.upload != nil {
		if a.file, err = openFile(r.upload, a.patience); err != nil {
			return nil, err
		}
		req.Body, req.GetBody, req.ContentLength = a.file, nil, -1
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "cardorder-client")
	for name, values := range r.header {
		req.Header[name] = values
	}
	if token := c.token.reveal(); token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := c.http.Do(req) //nolint:bodyclose // close does
	if err != nil {
		return nil, a.failure(err)
	}
	a.header, a.body = res.Header, res.Body
	if a.file.failed() != nil {
		return nil, a.failure(nil) // whatever the service makes of half a file
	}
	if res.StatusCode/100 != 2 {
		return nil, readProblem(res)
	}
	return a, nil
}

func (a *attempt) close() {
	if a.body != nil {
		_ = a.body.Close()
	}
	a.patience.stop()
	a.end(nil)
	a.file.release(a.parent, a.patience.limit)
}

// failure is the attempt's error for one of the transport.
func (a *attempt) failure(err error) error {
	switch {
	case a.parent.Err() != nil:
		return a.parent.Err()
	case a.file.failed() != nil:
		return fmt.Errorf("reading what is uploaded: %w", a.file.failed())
	case errors.Is(context.Cause(a.ctx), errStill):
		return &networkError{text: fmt.Sprintf("%v (%v)", errStill, a.patience.limit), cause: errStill}
	}
	return newNetworkError(err)
}

// maxAnswer is the longest answer that is decoded as a whole, in bytes: several
// times what a page of orders can be.
const maxAnswer = 16 << 20

func (a *attempt) decode(into any) error {
	content, err := io.ReadAll(io.LimitReader(a.body, maxAnswer+1))
	if err != nil {
		return a.failure(err)
	}
	if len(content) > maxAnswer {
		return fmt.Errorf("the answer has more than %d bytes", maxAnswer)
	}
	if json.Unmarshal(content, into) != nil { // its error quotes the answer
		return errNotExpected
	}
	return nil
}

// Read reads an answer that is a stream: only the service has to hurry, not who
// works on what came.
func (a *attempt) Read(p []byte) (int, error) {
	a.patience.restart()
	n, err := a.body.Read(p)
	a.patience.stop()
	return n, err
}

func newNetworkError(err error) *networkError {
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err // without the URL
	}
	_, certificate := errors.AsType[*tls.CertificateVerificationError](err)
	_, record := errors.AsType[tls.RecordHeaderError](err)
	_, network := errors.AsType[net.Error](err)
	e := &networkError{text: "no readable answer", cause: err, final: certificate || record}
	if certificate || network || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) {
		e.text = err.Error()
	}
	return e
}
