package d1sim

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Faults are misbehaviours by chance. A share is a number from 0, never, to 1, always; a request, or a notification,
// meets one fault at most.
//
// What is drawn depends on the seed, on the issuerRequestId (for a question, the cardId) and on how many requests of
// its kind came for it before, on nothing else: whoever sends the same orders again meets the same faults, in whatever
// order and however fast the orders come.
type Faults struct {
	// Seed chooses the draws. Default 0.
	Seed uint64 `json:"seed" yaml:"seed"`

	// Shares of production, change and status requests; with ProductionOnly of production requests.
	ProductionOnly bool    `json:"productionOnly" yaml:"productionOnly"`
	LostBefore     float64 `json:"lostBefore" yaml:"lostBefore"`       // cut, nothing accepted
	LostAfter      float64 `json:"lostAfter" yaml:"lostAfter"`         // accepted, then cut
	ErrorBefore    float64 `json:"errorBefore" yaml:"errorBefore"`     // 500 with a D1 body, 502 with HTML, or a bare 503; nothing accepted
	ErrorAfter     float64 `json:"errorAfter" yaml:"errorAfter"`       // accepted, then 500 with a D1 body
	RateLimited    float64 `json:"rateLimited" yaml:"rateLimited"`     // 429, nothing accepted
	Slow           float64 `json:"slow" yaml:"slow"`                   // accepted, answered after SlowBy
	Revoked        float64 `json:"revoked" yaml:"revoked"`             // the request's token has ended before its time: 401
	NoOperationID  float64 `json:"noOperationId" yaml:"noOperationId"` // accepted, then 202 {}; not for status

	// RetryAfter is told with a 429 in whole seconds, by turns as a number and as a date. Default 0: it is not told.
	RetryAfter Duration `json:"retryAfter" yaml:"retryAfter"`
	// SlowBy is the delay of a slow answer. Default 1s.
	SlowBy Duration `json:"slowBy" yaml:"slowBy"`

	// TokenErrors is the share of token requests that get 500, 502 or 503.
	TokenErrors float64 `json:"tokenErrors" yaml:"tokenErrors"`

	// Shares of notifications.
	LostNotifications      float64 `json:"lostNotifications" yaml:"lostNotifications"`           // never sent
	DuplicateNotifications float64 `json:"duplicateNotifications" yaml:"duplicateNotifications"` // delivered a second time, in a later call
	LateNotifications      float64 `json:"lateNotifications" yaml:"lateNotifications"`           // held back for LateBy, so that later ones overtake it

	// LateBy is how long a late notification is held back. Default 1s.
	LateBy Duration `json:"lateBy" yaml:"lateBy"`
}

// Fault names a misbehaviour, in the history and in the counts.
type Fault string

// The faults, each a share of Faults.
const (
	FaultLostBefore            Fault = "lost-before"
	FaultLostAfter             Fault = "lost-after"
	FaultErrorBefore           Fault = "error-before"
	FaultErrorAfter            Fault = "error-after"
	FaultRateLimited           Fault = "rate-limited"
	FaultSlow                  Fault = "slow"
	FaultRevoked               Fault = "revoked"
	FaultNoOperationID         Fault = "no-operation-id"
	FaultTokenError            Fault = "token-error"
	FaultLostNotification      Fault = "lost-notification"
	FaultDuplicateNotification Fault = "duplicate-notification"
	FaultLateNotification      Fault = "late-notification"
)

// share is one fault's part of the whole.
type share struct {
	fault Fault
	of    float64
}

// shares lists what a request of a kind may meet.
func (f *Faults) shares(kind Kind) []share {
	switch {
	case kind == KindToken:
		return []share{{FaultTokenError, f.TokenErrors}}
	case kind != KindProduction && (kind != KindStatus && kind != KindChange || f.ProductionOnly):
		return nil
	}
	shares := []share{
		{FaultLostBefore, f.LostBefore}, {FaultLostAfter, f.LostAfter}, {FaultErrorBefore, f.ErrorBefore},
		{FaultErrorAfter, f.ErrorAfter}, {FaultRateLimited, f.RateLimited}, {FaultSlow, f.Slow}, {FaultRevoked, f.Revoked},
	}
	if kind != KindStatus {
		shares = append(shares, share{FaultNoOperationID, f.NoOperationID})
	}
	return shares
}

func (f *Faults) notificationShares() []share {
	return []share{
		{FaultLostNotification, f.LostNotifications}, {FaultDuplicateNotification, f.DuplicateNotifications},
		{FaultLateNotification, f.LateNotifications},
	}
}

// chance is a source of draws for one thing, named by the parts.
func (f *Faults) chance(parts ...string) *rand.Rand {
	h := fnv.New64a()
	_, _ = io.WriteString(h, strings.Join(parts, "\x00"))
	return rand.New(rand.NewPCG(f.Seed, h.Sum64())) //nolint:gosec // a run must be repeatable
}

// pick takes one of the shares, or none.
func pick(draw *rand.Rand, shares []share) Fault {
	left := draw.Float64()
	for _, s := range shares {
		if left -= s.of; left < 0 {
			return s.fault
		}
	}
	return ""
}

// checked returns the faults with defaults filled in.
func (f Faults) checked() Faults {
	defaultTo(&f.SlowBy, Duration(time.Second))
	defaultTo(&f.LateBy, Duration(time.Second))
	return f
}

// wrong is all that is wrong with the faults.
func (f *Faults) wrong() error {
	var faults []error
	for what, shares := range map[string][]share{
		"requests":       f.shares(KindProduction),
		"token requests": f.shares(KindToken),
		"notifications":  f.notificationShares(),
	} {
		sum := 0.0
		for _, s := range shares {
			if !(s.of >= 0) { // nor be NaN
				faults = append(faults, fmt.Errorf("faults: the share of %s must not be negative", s.fault))
			}
			sum += s.of
		}
		if sum > 1+1e-9 {
			faults = append(faults, fmt.Errorf("faults: the shares of %s are more than 1 together", what))
		}
	}
	for name, d := range map[string]Duration{"retryAfter": f.RetryAfter, "slowBy": f.SlowBy, "lateBy": f.LateBy} {
		if d < 0 {
			faults = append(faults, fmt.Errorf("faults.%s: must not be negative", name))
		}
	}
	return errors.Join(faults...)
}

// misfortune draws the fault that a request meets, as the script that does it; nil for none.
func (s *Sim) misfortune(q *inquiry) *Script {
	f := q.settings.Faults
	if f == nil {
		return nil
	}
	shares := f.shares(q.record.Kind)
	if shares == nil {
		return nil
	}
	id := q.record.IssuerRequestID
	if id == "" {
		id = q.record.CardID
	}
	key := drawKey{q.record.Kind, q.record.IssuerID, id}
	s.mu.Lock()
	nth := s.book.drawn[key]
	s.book.drawn[key]++
	s.mu.Unlock()

	draw := f.chance(string(key.kind), key.issuerID, key.id, strconv.Itoa(nth))
	q.record.Fault = pick(draw, shares)
	switch q.record.Fault {
	case FaultLostBefore:
		return &Script{Action: ActionLostBefore}
	case FaultLostAfter:
		return &Script{Action: ActionLostAfter}
	case FaultErrorBefore, FaultTokenError:
		return anyServerError(draw)
	case FaultErrorAfter:
		return &Script{Action: ActionErrorAfter}
	case FaultRateLimited:
		return &Script{Action: ActionAnswer, Status: http.StatusTooManyRequests, Headers: f.retryAfter(draw, s.now(q.settings))}
	case FaultSlow:
		return &Script{Action: ActionDelay, Delay: f.SlowBy}
	case FaultRevoked:
		return &Script{Action: ActionRevoke}
	case FaultNoOperationID:
		return &Script{Action: ActionNoOperationID}
	}
	return nil
}

func anyServerError(draw *rand.Rand) *Script {
	return []*Script{
		{Action: ActionAnswer, Status: http.StatusInternalServerError, Body: `{"error":"internal error"}`},
		{
			Action: ActionAnswer, Status: http.StatusBadGateway, Body: "<html><body>502 Bad Gateway</body></html>",
			Headers: map[string]string{"Content-Type": "text/html"},
		},
		{Action: ActionAnswer, Status: http.StatusServiceUnavailable},
	}[draw.IntN(3)]
}

// retryAfter is the header of a 429, in one of its two forms.
func (f *Faults) retryAfter(draw *rand.Rand, now time.Time) map[string]string {
	if f.RetryAfter == 0 {
		return nil
	}
	wait := (time.Duration(f.RetryAfter) + time.Second - 1).Truncate(time.Second)
	if draw.IntN(2) == 0 {
		return map[string]string{"Retry-After": strconv.Itoa(int(wait / time.Second))}
	}
	return map[string]string{"Retry-After": now.Add(wait).UTC().Format(http.TimeFormat)}
}

// tellCard queues the notification of a card's present status.
func (b *book) tellCard(c *card, now time.Time, set Settings) {
	b.tell(c.issuerID, c.op, c.op.Details.Status, now, set)
}

// tellChange queues the notification of what has become of a change.
func (b *book) tellChange(ch *change, now time.Time, set Settings) {
	b.tell(ch.issuerID, ch.op, ch.kind+" "+ch.op.Status, now, set)
}

// tell queues a notification, unless it is to get lost or comes late. The draw is by the step that it tells of.
func (b *book) tell(issuerID string, op Operation, step string, now time.Time, set Settings) {
	n := &notification{op: op}
	var met Fault
	if f := set.Faults; f != nil {
		id := op.IssuerRequestID
		if id == "" {
			id = op.CardID
		}
		met = pick(f.chance("notification", issuerID, id, step), f.notificationShares())
	}
	if met != "" {
		b.faults[met]++
	}
	switch met {
	case FaultLostNotification:
	case FaultLateNotification:
		b.late = append(b.late, lateNotification{issuerID, now.Add(time.Duration(set.Faults.LateBy)), n})
	default:
		n.again = met == FaultDuplicateNotification
		b.queued[issuerID] = append(b.queued[issuerID], n)
	}
}

// queueLate queues the late notifications whose time has come, and tells how many and when the next one is due.
func (b *book) queueLate(now time.Time) (queued int, next time.Time) {
	for len(b.late) > 0 {
		l := b.late[0]
		if l.due.After(now) {
			return queued, l.due
		}
		b.late = b.late[1:]
		b.queued[l.issuerID] = append(b.queued[l.issuerID], l.notification)
		queued++
	}
	return queued, time.Time{}
}

// FaultCounts tells how many requests and notifications met each fault of Settings.Faults since the last reset.
func (s *Sim) FaultCounts() map[Fault]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.book.faults)
}
