package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"cardorder/internal/order"
)

// Drift is what D1 had not told: notifications that got lost, or came too late. Asking D1
// finds it, and what it finds is an event whose cause is CauseReconciliation.

// cause is why the order of a completion changed. Whoever asked about an order whose
// outcome was unknown knew that he knew nothing; what a check finds, somebody believed to
// know otherwise.
func (c *Completion) cause() Cause {
	cause := Cause{Kind: CauseAttempt, ID: c.Attempt.ID.String()}
	if c.Message.Kind == KindAsk {
		cause.Kind = CauseReconciliation
	}
	return cause
}

// unknownStatus is the detail of an event that a status without a meaning here makes, nil
// without one. A notification shows it by itself; of an answer nothing else is kept.
func unknownStatus(evidence []order.Evidence) json.RawMessage {
	for _, e := range evidence {
		if r, ok := e.(order.Report); ok && order.HasUnknownStatus(r) {
			detail, _ := json.Marshal(map[string]string{"unknownStatus": r.Status}) // no string fails
			return detail
		}
	}
	return nil
}

// silentChecks is how often D1 has nothing new to say of an order before people are told.
const silentChecks = 3

// silent tells whether D1 has been asked about an order often enough, and has said nothing
// new for long enough.
func (s *Store) silent(o *lockedOrder) bool {
	limits := s.limits(o.issuer, o.cardProductID)
	return o.checks >= silentChecks && limits != nil && limits.SilentAfter > 0 &&
		(o.heardAt == nil || o.now.Sub(*o.heardAt) >= limits.SilentAfter)
}

// ships tells whether D1 showed something new of the shipments of an order, which is then
// written. An operation of another order proves nothing.
func (c *completing) ships(key orderKey, done *Completion) (news bool) {
	if slices.ContainsFunc(done.Seen, func(id string) bool { return c.owners[id] != key }) {
		return false
	}
	for _, u := range done.Shipments {
		key := shipmentKey{key, u.TrackingNumber}
		known, there := c.shipments[key]
		if next := known.with(u); !there || next != known {
			c.shipments[key], c.shipped[key], news = next, next, true
		}
	}
	return news
}

// Difference is what asking D1 found: the status that an order turned out to have, or one
// of these.
type Difference string

const (
	DifferenceAttention Difference = "attention" // something that needs a human
	DifferenceDetails   Difference = "details"   // anything else: the operation, a date, a parcel
)

// Differences lists them all.
func Differences() []Difference {
	list := []Difference{DifferenceAttention, DifferenceDetails}
	for _, s := range order.Statuses {
		list = append(list, Difference(s))
	}
	return list
}

func differenceOf(before, after order.State) Difference {
	switch eventType(before, after) {
	case EventStatusChanged:
		return Difference(after.Status)
	case EventAttentionChanged:
		return DifferenceAttention
	default:
		return DifferenceDetails
	}
}

// Drift is one thing that asking D1 found.
type Drift struct {
	OrderID        uuid.UUID
	Seq            int // of the order's event
	At             time.Time
	Type           EventType
	Status         order.Status
	PreviousStatus order.Status
	Attention      []order.Attention
	AttemptID      string
	// NotifiedLater tells that a notification of the order came, and was applied, after
	// D1 was asked.
	NotifiedLater bool
}

// DriftPlace is a place in the list of what asking D1 found.
type DriftPlace struct {
	At      time.Time
	OrderID uuid.UUID
	Seq     int
}

// Place is where d stands in the list.
func (d *Drift) Place() DriftPlace { return DriftPlace{d.At, d.OrderID, d.Seq} }

// DriftFilter selects from that list; what is zero selects nothing out.
type DriftFilter struct {
	From   time.Time  // inclusive
	To     time.Time  // exclusive
	Before DriftPlace // only what stands after it in the list, which begins with the newest
	Limit  int        // 1 to 200
}

// selectDrift reads drift by the one index made for it.
const selectDrift = `
	SELECT e.order_id, e.seq, e.created_at, e.type, e.status, coalesce(e.previous_status, ''), e.attention, coalesce(e.cause_id, ''),
		EXISTS (SELECT FROM notifications n WHERE n.issuer_id = e.issuer_id AND n.order_id = e.order_id
			AND n.outcome = 'applied' AND n.created_at > e.created_at)
	FROM order_events e
	WHERE e.issuer_id = $1 AND e.cause = 'reconciliation' AND e.created_at >= $2 AND e.created_at < $3
		AND e.created_at <= $4 AND (e.created_at, e.order_id, e.seq) < ($4, $5, $6)
	ORDER BY e.created_at DESC, e.order_id DESC, e.seq DESC LIMIT $7`

// Drift lists what asking D1 found, newest first.
func (s *Store) Drift(ctx context.Context, issuer string, f DriftFilter) ([]*Drift, error) {
	args := []any{issuer, orFirst(f.From), orLast(f.To), orLast(f.Before.At), f.Before.OrderID, f.Before.Seq, f.Limit}
	var list []*Drift
	err := s.list(ctx, selectDrift, args, func(rows pgx.Rows) (err error) {
		list, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (*Drift, error) {
			var d Drift
			return &d, row.Scan(&d.OrderID, &d.Seq, &d.At, &d.Type, &d.Status, &d.PreviousStatus, &d.Attention, &d.AttemptID, &d.NotifiedLater)
		})
		return err
	})
	if err != nil && !errors.Is(err, ErrTooSlow) {
		err = fmt.Errorf("listing what asking D1 found: %w", err)
	}
	return list, err
}
