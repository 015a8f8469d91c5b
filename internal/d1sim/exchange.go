package d1sim

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"regexp"
	"time"

	"github.com/go-chi/chi/v5"
)

var (
	issuerIDPattern    = regexp.MustCompile(`^[A-Za-z0-9_-]{10}$`)
	cardIDPattern      = regexp.MustCompile(`^[A-Za-z0-9_-]{1,48}$`)
	productPattern     = regexp.MustCompile(`^[A-Za-z0-9_-]{1,48}$`)
	correlationPattern = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	requestIDPattern   = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	consumerPattern    = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
)

const maxBody = 1 << 20 // bytes of a request that are read at most

// Handler is the D1 side: the token endpoint and the API.
func (s *Sim) Handler() http.Handler {
	r := chi.NewRouter()
	r.Use(markSimulator)
	r.Post("/authz/v1/oauth2/token", s.exchange(KindToken, s.token))

	const issuers = "/banking/v1/issuers/{issuerId}"
	r.Post(issuers+"/physicalCards/{cardId}/operations:production",
		s.exchange(KindProduction, s.inStyle(PathReference, s.production)))
	r.Post(issuers+"/physicalcards/{cardId}/operations/production",
		s.exchange(KindProduction, s.inStyle(PathLowercase, s.production)))
	r.Post(issuers+"/physicalCards/{cardId}/operations:change",
		s.exchange(KindChange, s.inStyle(PathReference, s.change)))
	r.Post(issuers+"/physicalcards/{cardId}/operations/change",
		s.exchange(KindChange, s.inStyle(PathLowercase, s.change)))
	r.Get(issuers+"/physicalCards/{cardId}/productionStatus",
		s.exchange(KindStatus, s.inStyle(PathReference, s.productionStatus)))
	for _, name := range []string{"productionStatus", "productionstatus"} { // which of them, nobody knows
		r.Get(issuers+"/physicalcards/{cardId}/"+name,
			s.exchange(KindStatus, s.inStyle(PathLowercase, s.productionStatus)))
	}

	r.NotFound(s.exchange(KindOther, noSuchPath))
	r.MethodNotAllowed(s.exchange(KindOther, func(*inquiry) answer { return answer{status: http.StatusMethodNotAllowed} }))
	return r
}

// markSimulator keeps the simulator from being mistaken for the bureau.
func markSimulator(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Simulator", "d1sim")
		next.ServeHTTP(w, r)
	})
}

// inquiry is one request on the D1 side while it is judged.
type inquiry struct {
	*http.Request
	body     []byte
	settings Settings // as they were when the request came
	record   Request
	twice    bool // make a second card of an order that is accepted
}

// answer is what an inquiry gets.
type answer struct {
	status  int
	headers map[string]string
	body    []byte
	cut     bool          // cut the connection instead of answering
	delay   time.Duration // before the answer or the cut
	drip    time.Duration // before each byte of the body; 0: all at once
}

type handler func(*inquiry) answer

// inStyle hides a path from issuers that were onboarded with the other style. An unknown issuer is let through, to be
// told from the others only after its token was looked at.
func (s *Sim) inStyle(style string, next handler) handler {
	return func(q *inquiry) answer {
		if iss := s.issuers[chi.URLParam(q.Request, "issuerId")]; iss != nil && iss.pathStyle != style {
			return noSuchPath(q)
		}
		return next(q)
	}
}

// exchange answers one request: scripts before settings before the contract. The request is in the history before its
// answer leaves, so whoever got an answer finds it there.
func (s *Sim) exchange(kind Kind, handle handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		q := &inquiry{Request: r, settings: s.Settings()}
		q.record = Request{Time: time.Now().UTC(), Kind: kind}
		q.identify()

		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		var ans answer
		switch {
		case err == nil:
			q.body = body
			ans = s.judge(q, handle)
		case errors.As(err, new(*http.MaxBytesError)):
			ans = d1Error(http.StatusBadRequest, "", "request body is too long")
		default:
			ans = answer{cut: true} // the client left while sending
		}
		ans.delay += time.Duration(q.settings.AnswerDelay)

		q.record.Status, q.record.Cut = ans.status, ans.cut
		s.remember(q.record)
		if !pause(r.Context(), ans.delay) {
			ans.cut = true // client or simulator is leaving; net/http would answer 200 by itself
		}
		w.Header().Set("Date", s.now(q.settings).UTC().Format(http.TimeFormat))
		ans.send(r.Context(), w)
	}
}

// now is the time by the bureau's own clock.
func (s *Sim) now(set Settings) time.Time { return time.Now().Add(time.Duration(set.ClockSkew)) }

// judge finds the answer, with the next script that fits having its say before or after the contract; without one,
// a fault may.
func (s *Sim) judge(q *inquiry, handle handler) answer {
	if q.record.Kind == KindProduction || q.record.Kind == KindChange {
		q.record.IssuerRequestID = peekRequestID(q.body)
	}
	script := s.takeScript(&q.record)
	if script == nil {
		script = s.misfortune(q)
	}
	if script == nil {
		return s.byContract(q, handle)
	}
	if script.Action.before() {
		return script.answer()
	}
	if script.Action == ActionRevoke {
		s.revoke(bearerOf(q.Request))
		return s.byContract(q, handle)
	}
	q.twice = script.Action == ActionTwoOperations
	ans := s.byContract(q, handle)
	if ans.status >= http.StatusBadRequest {
		s.giveBack(script) // refused by the contract: the script waits for a request that is not
		q.record.Script, q.record.Fault = "", ""
		return ans
	}
	return script.after(ans)
}

// byContract is the answer that settings and contract give.
func (s *Sim) byContract(q *inquiry, handle handler) answer {
	switch {
	case q.settings.Paused:
		return d1Error(http.StatusServiceUnavailable, "", "paused")
	case q.settings.WrongURL && q.record.Kind != KindToken:
		return noSuchPath(q)
	}
	return handle(q)
}

// identify records the ids of a request. Only what looks like an id: a client's mistake must not put anything else
// into history and logs.
func (q *inquiry) identify() {
	keep := func(field *string, pattern *regexp.Regexp, value string) {
		if pattern.MatchString(value) {
			*field = value
		}
	}
	keep(&q.record.IssuerID, issuerIDPattern, chi.URLParam(q.Request, "issuerId"))
	keep(&q.record.CardID, cardIDPattern, chi.URLParam(q.Request, "cardId"))
	keep(&q.record.CorrelationID, correlationPattern, q.Header.Get("X-Correlation-Id"))
}

// refuse answers with D1's error body and records its code.
func (q *inquiry) refuse(status int, code, text string) answer {
	q.record.ErrorCode = code
	return d1Error(status, code, text)
}

func (a answer) send(ctx context.Context, w http.ResponseWriter) {
	if a.cut {
		cut(w)
		return
	}
	if len(a.body) > 0 {
		w.Header().Set("Content-Type", "application/json")
	}
	for name, value := range a.headers {
		w.Header().Set(name, value)
	}
	w.WriteHeader(a.status)
	if a.drip == 0 {
		_, _ = w.Write(a.body) // a client that has gone is no fault of ours
		return
	}
	dripping := http.NewResponseController(w)
	for i := range a.body {
		if dripping.Flush() != nil || !pause(ctx, a.drip) {
			panic(http.ErrAbortHandler) // or net/http would end the body properly
		}
		_, _ = w.Write(a.body[i : i+1])
	}
}

// cut ends the connection without an answer.
func cut(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler) // HTTP/2: aborting resets the stream, which is all that can be cut
	}
	_ = conn.Close()
}

func jsonAnswer(status int, body any) answer {
	text, err := json.Marshal(body)
	if err != nil {
		panic(err) // our own types: always a mistake in this package
	}
	return answer{status: status, body: text}
}

// d1Error is D1's error body; either member may be missing.
func d1Error(status int, code, text string) answer {
	return jsonAnswer(status, struct {
		ErrorCode string `json:"errorCode,omitempty"`
		Error     string `json:"error,omitempty"`
	}{code, text})
}

// noSuchPath is what a gateway says, so it has no D1 error body.
func noSuchPath(*inquiry) answer {
	return answer{
		status:  http.StatusNotFound,
		headers: map[string]string{"Content-Type": "text/plain; charset=utf-8"},
		body:    []byte("404 page not found\n"),
	}
}
