package d1sim

import (
	"log/slog"
	"slices"
	"time"
)

// Kind is what a request on the D1 side asked for.
type Kind string

// The kinds of requests.
const (
	KindToken      Kind = "token"
	KindProduction Kind = "production"
	KindChange     Kind = "change"
	KindStatus     Kind = "status"
	KindOther      Kind = "other" // a path or method that D1 does not have
)

// Request is one request on the D1 side and how it was answered: ids only, never a body.
type Request struct {
	Time            time.Time `json:"time"` // when it came
	Kind            Kind      `json:"kind"`
	IssuerID        string    `json:"issuerId,omitempty"` // token: the verified iss
	CardID          string    `json:"cardId,omitempty"`
	IssuerRequestID string    `json:"issuerRequestId,omitempty"`
	CorrelationID   string    `json:"correlationId,omitempty"`
	Status          int       `json:"status"` // 0 when the connection was cut instead
	Cut             bool      `json:"cut,omitempty"`
	ErrorCode       string    `json:"errorCode,omitempty"` // D1's own, not a script's
	OperationID     string    `json:"operationId,omitempty"`
	CardMade        bool      `json:"cardMade"`
	Change          string    `json:"change,omitempty"` // type of a change: CANCEL, ...
	Script          Action    `json:"script,omitempty"` // the script that had its say
	Fault           Fault     `json:"fault,omitempty"`  // of Settings.Faults, that it met
}

// historyLimit bounds what is remembered of requests and of deliveries each: the older half is forgotten beyond it.
const historyLimit = 200_000

// Filter chooses requests; an empty member chooses all.
type Filter struct {
	Kind            Kind
	IssuerRequestID string
	CardID          string
}

func (f Filter) fits(r Request) bool {
	return (f.Kind == "" || f.Kind == r.Kind) &&
		(f.IssuerRequestID == "" || f.IssuerRequestID == r.IssuerRequestID) &&
		(f.CardID == "" || f.CardID == r.CardID)
}

// History lists the requests since the last reset that fit the filter, oldest first.
func (s *Sim) History(f Filter) []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := []Request{}
	for _, r := range s.book.history {
		if f.fits(r) {
			found = append(found, r)
		}
	}
	return found
}

// remember writes a request into the history and the log.
func (s *Sim) remember(r Request) {
	s.mu.Lock()
	s.book.history = append(forgetHalf(s.book.history), r)
	if r.Fault != "" {
		s.book.faults[r.Fault]++
	}
	s.announce()
	s.mu.Unlock()

	s.log.Info("request", slog.String("kind", string(r.Kind)), slog.String("issuer_id", r.IssuerID),
		slog.String("card_id", r.CardID), slog.String("issuer_request_id", r.IssuerRequestID),
		slog.String("correlation_id", r.CorrelationID), slog.Int("status", r.Status), slog.Bool("cut", r.Cut),
		slog.String("error_code", r.ErrorCode), slog.String("operation_id", r.OperationID),
		slog.Bool("card_made", r.CardMade), slog.String("change", r.Change), slog.String("script", string(r.Script)),
		slog.String("fault", string(r.Fault)),
		slog.Duration("took", time.Since(r.Time)))
}

func forgetHalf[T any](list []T) []T {
	if len(list) < historyLimit {
		return list
	}
	return slices.Clone(list[historyLimit/2:])
}
