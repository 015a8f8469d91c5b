package d1client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"strconv"
	"time"
)

// Outcome is what an answer to an order, or to a change of one, proves about it.
type Outcome int

const (
	// Unknown: D1 may have taken the order or not. Ask before sending it again.
	// It is the zero value: whatever nobody thought of is unknown.
	Unknown Outcome = iota
	// NotTaken: certainly not taken, for a reason that is not the order's. It may be
	// sent again as it is, and burns no attempt.
	NotTaken
	// Taken: D1 took the order, with or without telling its operation id.
	Taken
	// Refused: D1 refused the order itself (400), or may have (403, 404). Of a change see
	// [Client.Change].
	Refused
)

func (o Outcome) String() string {
	switch o {
	case NotTaken:
		return "not-taken"
	case Taken:
		return "taken"
	case Refused:
		return "refused"
	default:
		return "unknown"
	}
}

// Reason says in a word why a call ended as it did: one of [Reasons], so it may be
// a metric label.
type Reason string

const (
	ReasonAccepted          Reason = "accepted"            // 2xx with an operation id
	ReasonAcceptedWithoutID Reason = "accepted-without-id" // 2xx, the operation id is missing or unreadable
	ReasonFound             Reason = "found"               // status: 2xx, list read
	ReasonNotFound          Reason = "not-found"           // status: 404
	ReasonRefused           Reason = "refused"             // 400, 403; to an order also 404
	ReasonUnauthorized      Reason = "unauthorized"        // 401 even with a new token
	ReasonRequestTimeout    Reason = "request-timeout"     // 408
	ReasonConflict          Reason = "conflict"            // 409
	ReasonTooEarly          Reason = "too-early"           // 425
	ReasonRateLimited       Reason = "rate-limited"        // 429
	ReasonClientError       Reason = "client-error"        // any other 4xx
	ReasonUnavailable       Reason = "unavailable"         // 503
	ReasonServerError       Reason = "server-error"        // any other 5xx
	ReasonRedirect          Reason = "redirect"            // 3xx; never followed
	ReasonUnreadable        Reason = "unreadable"          // not HTTP, not D1's JSON, too long, or a status no one knows
	ReasonTokenRefused      Reason = "token-refused"       // the token endpoint refuses our assertion
	ReasonToken             Reason = "token"               // no token for another cause
	ReasonDial              Reason = "dial"                // no connection: DNS, refused, unreachable, proxy
	ReasonTLS               Reason = "tls"                 // certificate or handshake, either side's
	ReasonTimeout           Reason = "timeout"             // the call's deadline passed
	ReasonCancelled         Reason = "cancelled"           // the call was cancelled
	ReasonCut               Reason = "cut"                 // the connection ended before the answer
	ReasonNotSent           Reason = "not-sent"            // BeforeSend forbade it
	ReasonInvalidCall       Reason = "invalid-call"        // the caller's mistake: card id or body; nothing sent
)

// Reasons returns every Reason there is, so that metrics can begin at zero.
func Reasons() []Reason {
	return []Reason{
		ReasonAccepted, ReasonAcceptedWithoutID, ReasonFound, ReasonNotFound, ReasonRefused,
		ReasonUnauthorized, ReasonRequestTimeout, ReasonConflict, ReasonTooEarly, ReasonRateLimited,
		ReasonClientError, ReasonUnavailable, ReasonServerError, ReasonRedirect, ReasonUnreadable,
		ReasonTokenRefused, ReasonToken, ReasonDial, ReasonTLS, ReasonTimeout, ReasonCancelled,
		ReasonCut, ReasonNotSent, ReasonInvalidCall,
	}
}

// Reply is what every call to D1 tells, whatever was asked. It holds nothing that
// may not be logged.
type Reply struct {
	// Reason is one of [Reasons].
	Reason Reason
	// Status is the HTTP status; 0 when no answer came.
	Status int
	// ErrorCode is D1's errorCode; empty when absent or not of the form of a code.
	ErrorCode string
	// ErrorText is D1's free error text reduced to names of members and technical
	// words, at most 200 characters: D1 names the bad field there, and may quote its
	// value.
	ErrorText string
	// HasErrorBody is true when D1 itself explained an error: a JSON object with an
	// errorCode or an error. A gateway's error page has none.
	HasErrorBody bool
	// RetryAfter is how long D1 asked us to wait, at most an hour; 0 when it did not.
	RetryAfter time.Duration
	// ServerDate is the answer's Date header, to the second, which shows the skew
	// between the two clocks; zero when absent.
	ServerDate time.Time
	// CorrelationID is the x-correlation-id sent: the caller's, or a random one when
	// the caller's was not acceptable to D1.
	CorrelationID string
	// Duration is the whole call's, the token and a second try after a 401 included.
	Duration time.Duration
	// Err is why no answer came, or why its body could not be read; nil otherwise.
	// It never holds content of the request or of the answer.
	Err error
}

// Answer is what became of an order, or of a change, sent to D1.
type Answer struct {
	Outcome Outcome
	// OperationID is D1's id of what it took, of 1 to 64 characters A-Z a-z 0-9 _ -.
	// It may be empty: optional in D1's schema, or unreadable.
	OperationID string
	Reply
}

// Call is one order, or one change of an order. It prints its ids only.
type Call struct {
	// CardID is the card at D1, ^[A-Za-z0-9_-]{1,48}$.
	CardID string
	// CorrelationID is sent as x-correlation-id, ^[A-Za-z0-9_-]{1,64}$. D1 logs it in
	// clear, so it must not be made from personal data. Default: random.
	CorrelationID string
	// Body is what D1 is sent, as JSON. It must not change before the call returns.
	Body []byte
	// BeforeSend, when not nil, is called with the token and the connection in hand,
	// immediately before the first byte may be written. Its error forbids the
	// sending: NotTaken, ReasonNotSent. It is called again before each further try
	// (after a 401, or a kept connection that took no byte).
	BeforeSend func() error
}

// Format prints the ids for every verb: Body holds personal data.
func (p Call) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "{card %q correlation %q body %d bytes}", p.CardID, p.CorrelationID, len(p.Body))
}

// LogValue logs what Format prints.
func (p Call) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(p)) }

// maxPostAnswer bounds the body of an answer to an order or a change, in bytes.
const maxPostAnswer = 64 << 10

// Produce orders a card. The deadline of ctx is the call's, and after Produce has
// returned nothing more is handed to the network for it.
//
// A status means: 2xx Taken; 400, 403, 404 Refused; 401 (after a second try with a
// new token), 425, 429 and, by setting, 503 NotTaken; every other answer, and none,
// Unknown. Without an answer it is NotTaken only when no byte of the request can
// have been written.
func (c *Client) Produce(ctx context.Context, p Call) Answer {
	return c.post(ctx, c.paths.production, p, refusesOrder)
}

// refusesOrder tells whether a status is D1's refusal of an order. Others of the same
// class may come from somewhere on the way, after D1 took it.
func refusesOrder(status int) bool {
	return status == http.StatusBadRequest || status == http.StatusForbidden || status == http.StatusNotFound
}

// post makes the call p at a path of its card.
func (c *Client) post(ctx context.Context, path string, p Call, refuses func(status int) bool) Answer {
	started := c.now()
	id := correlation(p.CorrelationID)
	if !isID(p.CardID, maxCardID) || len(p.Body) == 0 {
		return Answer{Outcome: NotTaken, Reply: invalidCall(id)}
	}
	res := c.exchange(ctx, request{
		method:        http.MethodPost,
		url:           c.cards + p.CardID + "/" + path,
		correlationID: id,
		body:          p.Body,
		beforeSend:    p.BeforeSend,
		maxAnswer:     maxPostAnswer,
	})
	a := Answer{Reply: c.reply(res, id, started)}
	a.Outcome = c.outcome(res, refuses)
	if a.Outcome == Taken {
		// An unreadable acceptance is one all the same: a status tells.
		a.OperationID = takenID(res.body)
		a.Reason = ReasonAccepted
		if a.OperationID == "" {
			a.Reason = ReasonAcceptedWithoutID
		}
	}
	return a
}

// takenID reads the operation id in an acceptance. Every order comes by here, so the
// members that nobody needs are only passed.
func takenID(body []byte) string {
	var answer struct {
		OperationID any `json:"operationId"`
	}
	if json.Unmarshal(body, &answer) != nil {
		return ""
	}
	if id, is := answer.OperationID.(string); is && isID(id, maxID) {
		return id
	}
	return ""
}

func (c *Client) outcome(res result, refuses func(status int) bool) Outcome {
	switch s := res.status; {
	case s == 0 && !res.sent:
		return NotTaken
	case s >= 200 && s <= 299:
		return Taken
	case refuses(s):
		return Refused
	case s == http.StatusUnauthorized, s == http.StatusTooEarly, s == http.StatusTooManyRequests,
		s == http.StatusServiceUnavailable && c.unavailableIsNotTaken:
		return NotTaken
	default:
		return Unknown
	}
}

// reply fills in all but the reason of a success, which the two calls name.
func (c *Client) reply(res result, correlationID string, started time.Time) Reply {
	now := c.now()
	r := Reply{
		Reason:        res.reason,
		Status:        res.status,
		CorrelationID: correlationID,
		Duration:      now.Sub(started),
		Err:           res.err,
	}
	if res.status == 0 {
		if te, ok := errors.AsType[*TokenError](res.err); ok {
			r.RetryAfter = te.RetryAfter
		}
		return r
	}
	r.Reason = statusReason(res.status)
	r.RetryAfter = retryAfter(res.header, now)
	if date, err := http.ParseTime(res.header.Get("Date")); err == nil {
		r.ServerDate = date.UTC()
	}
	if res.status >= 400 {
		r.ErrorCode, r.ErrorText, r.HasErrorBody = parseErrorBody(res.body)
	}
	return r
}

func invalidCall(correlationID string) Reply {
	return Reply{
		Reason:        ReasonInvalidCall,
		CorrelationID: correlationID,
		Err:           errors.New("d1client: the card id is malformed or the body empty"),
	}
}

func statusReason(status int) Reason {
	switch status {
	case http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound:
		return ReasonRefused
	case http.StatusUnauthorized:
		return ReasonUnauthorized
	case http.StatusRequestTimeout:
		return ReasonRequestTimeout
	case http.StatusConflict:
		return ReasonConflict
	case http.StatusTooEarly:
		return ReasonTooEarly
	case http.StatusTooManyRequests:
		return ReasonRateLimited
	case http.StatusServiceUnavailable:
		return ReasonUnavailable
	}
	switch status / 100 {
	case 3:
		return ReasonRedirect
	case 4:
		return ReasonClientError
	case 5:
		return ReasonServerError
	default:
		return ReasonUnreadable
	}
}

var (
	errorCodePattern = regexp.MustCompile(`^[A-Z0-9_]{1,64}$`)
	// A run of digits that long is a value, not a part of a code's name.
	longNumber = regexp.MustCompile(`[0-9]{8}`)
)

func parseErrorBody(body []byte) (code, text string, ok bool) {
	m, isObject := parseObject(body)
	if !isObject {
		return "", "", false
	}
	code, text = m.str("errorCode"), m.str("error")
	ok = code != "" || text != ""
	if !errorCodePattern.MatchString(code) || longNumber.MatchString(code) {
		code = ""
	}
	return code, safeErrorText(text), ok
}

const maxRetryAfter = time.Hour

// retryAfter reads both forms of Retry-After: seconds, and a date, which counts from
// the answer's own Date so that the clocks' skew does not.
func retryAfter(h http.Header, now time.Time) time.Duration {
	v := h.Get("Retry-After")
	if v == "" {
		return 0
	}
	if seconds, err := strconv.ParseUint(v, 10, 64); err == nil || errors.Is(err, strconv.ErrRange) {
		return time.Duration(min(seconds, uint64(maxRetryAfter/time.Second))) * time.Second
	}
	at, err := http.ParseTime(v)
	if err != nil {
		return 0
	}
	if date, err := http.ParseTime(h.Get("Date")); err == nil {
		now = date
	}
	return min(max(0, at.Sub(now)), maxRetryAfter)
}
