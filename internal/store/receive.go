package store

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"cardorder/internal/order"
)

// Notification is one operation of a notification from D1, as far as it could
// be read. Its bytes are kept whatever they say.
type Notification struct {
	Raw     []byte // as D1 sent it
	Content []byte // the same, in the form by which a repeat is recognised

	Operation       string // D1's kind of operation, "" when unreadable
	OperationID     string
	CardID          string
	IssuerRequestID string
	// NotByCard tells that the operation names a request or a file of its own, even
	// if one that cannot be ours: its card alone proves nothing.
	NotByCard     bool
	StartTime     time.Time
	Status        string         // of the operation: PENDING, SUCCESSFUL, FAILED
	Evidence      order.Evidence // what it says of its order; nil when it says nothing
	Shipment      ShipmentUpdate
	CorrelationID string
}

// Outcome is what became of a notification.
type Outcome string

const (
	OutcomeApplied   Outcome = "applied"   // its order has heard it
	OutcomeParked    Outcome = "parked"    // no order yet: tried again
	OutcomeUnapplied Outcome = "unapplied" // it belongs to an order but could not be applied
	OutcomeIgnored   Outcome = "ignored"   // nothing for this service to act upon
	OutcomeRepeated  Outcome = "repeated"  // seen before
	OutcomeForeign   Outcome = "foreign"   // no order for so long that it is somebody else's: not tried any more
)

// Operations of D1 that say something of an order.
const (
	OperationProduce  = "PRODUCE"             // makes a card
	OperationChange   = "UPDATE_ORDER"        // tells what became of a change
	OperationTracking = "STANDALONE_TRACKING" // follows a card that Thales did not make
)

// ofOrders tells whether the notification is about an order of somebody's.
func (n *Notification) ofOrders() bool {
	return n.Operation == OperationProduce || n.Operation == OperationChange || n.Operation == OperationTracking
}

// ofOthers tells whether it is about a request or a file that is not ours, if no
// operation of ours is found.
func (n *Notification) ofOthers() bool {
	return n.Operation == OperationProduce && n.NotByCard && n.IssuerRequestID == ""
}

// arrival is a notification on its way to its order: one that has just come, or one that
// is stored and is tried again.
type arrival struct {
	*Notification
	digest []byte
	body   []byte // sealed; of one that has just come
	id     int64  // of its row
	times  int    // how often it came with this transaction
	unread bool   // it is stored, and this process cannot read it: its issuer or its key is not in the configuration

	// What the first trip finds.
	order orderKey  // which may be nobody's: the nil id
	how   matchedBy // how it was found
	same  int64     // another row with the same content, 0 for none
	waits bool      // that row has no order

	outcome Outcome
}

// matchedBy is what an order was found by.
type matchedBy int

const (
	byNothing   matchedBy = iota
	byOperation           // its operation is known
	byRequest             // its issuerRequestId, or another name that is its own
	byCard                // it is the only one of its card that it can be
)

func (n *arrival) cause() Cause {
	return Cause{Kind: CauseNotification, ID: strconv.FormatInt(n.id, 10)}
}

// call is a small call of D1's, on its way into the tables with others.
type call struct {
	issuer string
	list   []*arrival
	done   chan error
}

// smallCall is up to how many operations a call is stored together with others.
const smallCall = 32

// Receive stores notifications of an issuer, some hundred at most, and applies them
// to their orders. The error is about the storing only: without one all of them
// are safe, and what could not be applied now is tried again by Sweep.
func (s *Store) Receive(ctx context.Context, issuer string, list []Notification) ([]Outcome, error) {
	c := &call{issuer: issuer, list: make([]*arrival, len(list)), done: make(chan error, 1)}
	sum := s.cfg.HashKeys.sums()
	for i := range list {
		n := &arrival{Notification: &list[i], digest: sum(list[i].Content)}
		var err error
		if n.body, err = s.cfg.Seal.seal(n.Raw, columnNotification, issuer, string(n.digest)); err != nil {
			return nil, fmt.Errorf("storing notifications: %w", err)
		}
		c.list[i] = n
	}
	var err error
	if len(list) <= smallCall {
		err = s.calls.enter(ctx, c, c.done)
	} else {
		err = s.receiveLarge(ctx, c)
		if err != nil && !Away(err) && ctx.Err() == nil {
			err = s.contained(func() error { return s.receiveApart(ctx, issuer, c.list, err) })
		}
	}
	if err != nil {
		return nil, fmt.Errorf("storing notifications: %w", err)
	}
	outcomes := make([]Outcome, len(list))
	for i, n := range c.list {
		outcomes[i] = n.outcome
	}
	return outcomes, nil
}

// receiveLarge stores a large call in one transaction. Few are stored at once, in the order
// in which they came: more would not be faster, but each would hold its orders, and a
// connection, for longer.
func (s *Store) receiveLarge(ctx context.Context, c *call) error {
	select {
	case s.large <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.large }()
	return s.contained(func() error { return s.receive(ctx, c.issuer, c.list) })
}

// receiveGroup stores calls that came at the same moment, those of each issuer in one
// transaction, and tells each of their callers.
func (s *Store) receiveGroup(group []*call) {
	for len(group) > 0 {
		issuer := group[0].issuer
		var calls, others []*call
		var list []*arrival
		for _, c := range group {
			if c.issuer != issuer {
				others = append(others, c)
				continue
			}
			calls, list = append(calls, c), append(list, c.list...)
		}
		group = others
		err := s.contained(func() error { return s.receive(context.Background(), issuer, list) })
		if err == nil || Away(err) {
			for _, c := range calls {
				c.done <- err
			}
			continue
		}
		// One of them cannot be applied, or its order is locked: each is tried alone,
		// beside the groups that come.
		for _, c := range calls {
			s.calls.running.Go(func() {
				err := err
				if len(calls) > 1 {
					err = s.contained(func() error { return s.receive(context.Background(), issuer, c.list) })
				}
				if err != nil && !Away(err) {
					err = s.contained(func() error { return s.receiveApart(context.Background(), issuer, c.list, err) })
				}
				c.done <- err
			})
		}
	}
}

// receive stores notifications that have just come, with what follows from them, in one
// transaction.
func (s *Store) receive(ctx context.Context, issuer string, list []*arrival) error {
	ctx, cancel := context.WithTimeout(ctx, groupTimeout)
	defer cancel()
	distinct := make(map[string]*arrival, len(list))
	r := &receiving{store: s, issuer: issuer}
	for _, n := range list {
		if first := distinct[string(n.digest)]; first != nil {
			n.outcome = OutcomeRepeated
			first.times++
			continue
		}
		n.times = 1
		distinct[string(n.digest)] = n
		r.list = append(r.list, n)
	}
	if err := r.run(ctx); err != nil {
		return err
	}
	if len(r.found) > 0 {
		s.cfg.OnParked(r.found)
	}
	return nil
}

// applyWithin is for how long the elements of a call are applied one by one while D1
// waits; what is left then is applied after the answer.
const applyWithin = time.Second

// receiveApart stores what could not be stored together with what follows from it: first
// all of it as it came, for that is what D1 is answered, and then each is applied by
// itself.
func (s *Store) receiveApart(ctx context.Context, issuer string, list []*arrival, cause error) error {
	s.cfg.Log.Warn("notifications could not be applied together: each is applied by itself", "issuerId", issuer, "count", len(list), "error", cause)
	fresh, err := s.park(ctx, issuer, list)
	if err != nil {
		return err
	}
	alone, cancel := context.WithTimeout(ctx, applyWithin)
	defer cancel()
	var left []int64
	for _, n := range fresh {
		if alone.Err() != nil {
			left = append(left, n.id)
			continue
		}
		if err := s.applyAlone(alone, issuer, n); err != nil && !isLockTimeout(err) {
			s.cfg.Log.Error("a stored notification could not be applied at once", "issuerId", issuer, "notificationId", n.id, "error", err)
		}
	}
	if len(left) > 0 {
		s.cfg.OnParked(left)
	}
	return nil
}

// park stores notifications as they came, and returns those that are to be applied. One
// that even so cannot be stored is stored without what was read of it: its bytes are
// what must not be lost.
func (s *Store) park(ctx context.Context, issuer string, list []*arrival) ([]*arrival, error) {
	ctx, cancel := context.WithTimeout(ctx, groupTimeout)
	defer cancel()
	fresh, err := s.parkTogether(ctx, issuer, list)
	if err == nil || Unavailable(err) || ctx.Err() != nil {
		return fresh, err
	}
	fresh = nil
	for _, n := range list {
		one, err := s.parkTogether(ctx, issuer, []*arrival{n})
		if err != nil {
			s.cfg.Log.Error("a notification cannot be stored with what was read of it", "issuerId", issuer, "error", err)
			bare := *n.Notification
			n.Notification = &Notification{Raw: bare.Raw, Content: bare.Content}
			if bare.ofOrders() { // it waits, and is not forgotten
				n.Operation = bare.Operation
			}
			if one, err = s.parkTogether(ctx, issuer, []*arrival{n}); err != nil {
				return nil, err
			}
		}
		fresh = append(fresh, one...)
	}
	return fresh, nil
}

func (s *Store) parkTogether(ctx context.Context, issuer string, list []*arrival) ([]*arrival, error) {
	var fresh []*arrival
	distinct := make(map[string]*arrival, len(list))
	for _, n := range list {
		n.times, n.outcome = 1, OutcomeIgnored
		if n.ofOrders() {
			n.outcome = OutcomeParked
		}
		if first := distinct[string(n.digest)]; first != nil {
			n.outcome = OutcomeRepeated
			first.times++
			continue
		}
		distinct[string(n.digest)] = n
		fresh = append(fresh, n)
	}
	// In one order, so that two calls with the same content never wait for each other in
	// a circle.
	slices.SortFunc(fresh, byDigest)
	rows := newNotificationRows(issuer, len(fresh))
	for _, n := range fresh {
		n.order = orderKey{}
		rows.add(n)
	}
	err := s.inTx(ctx, func(tx pgx.Tx) error {
		result, err := tx.Query(ctx, `
			INSERT INTO notifications AS n `+notificationColumns+notificationValues+`
			ON CONFLICT (issuer_id, digest) WHERE order_id IS NULL DO UPDATE SET times_seen = n.times_seen + EXCLUDED.times_seen, last_seen_at = now()
			RETURNING id, digest, times_seen`, rows.args(nil)...)
		if err != nil {
			return err
		}
		var id int64
		var digest []byte
		var times int
		_, err = pgx.ForEachRow(result, []any{&id, &digest, &times}, func() error {
			n := distinct[string(digest)]
			if n.id = id; times > n.times {
				n.outcome = OutcomeRepeated
			}
			return nil
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("storing notifications as they came: %w", err)
	}
	return slices.DeleteFunc(fresh, func(n *arrival) bool { return n.outcome != OutcomeParked }), nil
}

// applyAlone applies one stored notification that waits. One that cannot be applied is
// kept, and its order marked.
func (s *Store) applyAlone(ctx context.Context, issuer string, n *arrival) error {
	before := n.outcome
	err := s.applyStored(ctx, &receiving{store: s, issuer: issuer, list: []*arrival{n}, stored: true})
	if err == nil && n.outcome == "" {
		n.outcome = before // somebody else has it in hand
	}
	if err == nil {
		return nil
	}
	n.outcome = before
	if Unavailable(err) || ctx.Err() != nil {
		return err
	}
	s.cfg.Log.Error("a notification could not be applied", "issuerId", issuer, "notificationId", n.id, "orderId", n.order.id, "error", err)
	if n.order.id == uuid.Nil {
		return err
	}
	if err = s.applyStored(ctx, &receiving{store: s, issuer: issuer, list: []*arrival{n}, stored: true, broken: true}); err != nil {
		n.outcome = before
	}
	return err
}

// applyStored runs the transaction; a bug in it that panics is an error.
func (s *Store) applyStored(ctx context.Context, r *receiving) error {
	ctx, cancel := context.WithTimeout(ctx, groupTimeout) // a network that swallows everything must not end the sweeping
	defer cancel()
	return s.contained(func() error { return r.run(ctx) })
}
