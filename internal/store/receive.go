package store

import (
	"bytes"
	"cmp"
	"context"
	"errors"
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
)

// Operations of D1 that say something of an order.
const (
	OperationProduce  = "PRODUCE"             // makes a card
	OperationChange   = "UPDATE_ORDER"        // tells what became of a change
	OperationTracking = "STANDALONE_TRACKING" // follows a card that Thales did not make
)

// Receive stores notifications of an issuer, some hundred at most, and applies them
// to their orders. The error is about the storing only: without one all of them
// are safe, and what could not be applied now is tried again by Sweep.
func (s *Store) Receive(ctx context.Context, issuer string, list []Notification) ([]Outcome, error) {
	var outcomes []Outcome
	var fresh []*stored
	err := s.inTx(ctx, func(tx pgx.Tx) (err error) {
		outcomes = make([]Outcome, len(list))
		fresh, err = s.storeNotifications(ctx, tx, issuer, list, outcomes)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("storing notifications: %w", err)
	}
	if len(fresh) == 0 {
		return outcomes, nil
	}
	applied := make(map[*stored]Outcome, len(fresh))
	var locked map[orderKey]*lockedOrder
	err = s.inTx(ctx, func(tx pgx.Tx) (err error) {
		// D1 waits for the answer: an order that somebody has locked is left to Sweep.
		if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '500ms'`); err != nil {
			return err
		}
		locked, err = s.apply(ctx, tx, issuer, fresh, func(n *stored, outcome Outcome) { applied[n] = outcome })
		return err
	})
	if err != nil {
		s.cfg.Log.Error("stored notifications could not be applied at once", "issuerId", issuer, "count", len(fresh), "error", err)
		return outcomes, nil
	}
	s.logChanges(ctx, locked)
	for n, outcome := range applied {
		outcomes[n.index] = outcome
	}
	return outcomes, nil
}

// stored is a notification that has a row, not yet applied.
type stored struct {
	Notification
	index  int // in the caller's list
	digest []byte
	id     int64
	order  orderKey
	byCard bool // matched by its card alone
}

// storeNotifications writes one row for each content. A repeat raises the
// counter of its row; only what was never seen is returned.
func (s *Store) storeNotifications(ctx context.Context, tx pgx.Tx, issuer string, list []Notification, outcomes []Outcome) ([]*stored, error) {
	all := make([]*stored, len(list))
	for i := range list {
		all[i] = &stored{Notification: list[i], index: i, digest: s.cfg.HashKeys.sum(list[i].Content)}
	}
	// In the order of the unique index, so that two calls with the same content
	// never wait for each other; what comes twice in one call is written once.
	byDigest := slices.SortedStableFunc(slices.Values(all), func(x, y *stored) int { return bytes.Compare(x.digest, y.digest) })
	var b pgx.Batch
	for i, n := range byDigest {
		if i > 0 && bytes.Equal(n.digest, byDigest[i-1].digest) {
			outcomes[n.index] = OutcomeRepeated
			continue
		}
		body, err := s.cfg.Seal.seal(n.Raw, columnNotification, issuer, string(n.digest))
		if err != nil {
			return nil, err
		}
		outcome := OutcomeIgnored
		if n.Operation == OperationProduce {
			outcome = OutcomeParked
		}
		b.Queue(`
			INSERT INTO notifications AS n (issuer_id, digest, body, operation, operation_id, card_id, issuer_request_id,
				outcome, correlation_id, next_try_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, CASE WHEN $8 = 'parked' THEN now() + interval '2 s' END)
			ON CONFLICT (issuer_id, digest) DO UPDATE SET times_seen = n.times_seen + 1, last_seen_at = now()
			RETURNING id, times_seen`,
			issuer, n.digest, body, optional(n.Operation), optional(n.OperationID), optional(n.CardID), optional(n.IssuerRequestID),
			outcome, optional(n.CorrelationID),
		).QueryRow(func(row pgx.Row) error {
			var times int
			if err := row.Scan(&n.id, &times); err != nil {
				return err
			}
			if outcomes[n.index] = outcome; times > 1 {
				outcomes[n.index] = OutcomeRepeated
			}
			return nil
		})
	}
	if err := send(ctx, tx, &b); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(n *stored) bool { return outcomes[n.index] != OutcomeParked }), nil
}

// apply finds the orders of stored PRODUCE notifications and advances them,
// each in a savepoint of its own: one that fails harms no other.
func (s *Store) apply(ctx context.Context, tx pgx.Tx, issuer string, list []*stored, report func(*stored, Outcome)) (map[orderKey]*lockedOrder, error) {
	if err := lockNotifications(ctx, tx, list); err != nil {
		return nil, err
	}
	// By card, as all transactions that come to card_guard with several orders do.
	slices.SortStableFunc(list, func(x, y *stored) int { return cmp.Compare(x.CardID, y.CardID) })
	matched, err := match(ctx, tx, issuer, list)
	if err != nil {
		return nil, err
	}
	var keys []orderKey
	var seen []operation
	for _, n := range matched {
		keys = append(keys, n.order)
		if n.OperationID != "" && !n.byCard {
			seen = append(seen, operation{n.order, n.OperationID, "notification"})
		}
	}
	locked, owners, err := lockOrders(ctx, tx, keys, seen)
	if err != nil {
		return nil, err
	}
	for _, n := range list {
		outcome := OutcomeParked
		if n.NotByCard && n.IssuerRequestID == "" {
			outcome = OutcomeIgnored // somebody else's request or file, and no operation of ours
		}
		if o := locked[n.order]; o != nil {
			if outcome, err = s.applyTo(ctx, tx, o, n, owners); err != nil {
				return nil, err
			}
		}
		if err := settle(ctx, tx, n, outcome); err != nil {
			return nil, err
		}
		report(n, outcome)
	}
	return locked, nil
}

// lockNotifications locks the rows in the order in which storeNotifications comes
// to them: their outcomes are written later, in another order.
func lockNotifications(ctx context.Context, tx pgx.Tx, list []*stored) error {
	ids := make([]int64, len(list))
	for i, n := range list {
		ids[i] = n.id
	}
	if _, err := tx.Exec(ctx, `SELECT FROM notifications WHERE id = ANY($1) ORDER BY digest FOR UPDATE`, ids); err != nil {
		return fmt.Errorf("locking notifications: %w", err)
	}
	return nil
}

// applyTo applies a notification to its order. One that cannot be applied is
// kept, its order marked, and it is tried again. The error is one of the whole
// transaction, which Sweep then does again for each notification by itself.
func (s *Store) applyTo(ctx context.Context, tx pgx.Tx, o *lockedOrder, n *stored, owners map[string]orderKey) (Outcome, error) {
	if n.byCard && o.state.OperationID != "" && o.state.OperationID != n.OperationID {
		return OutcomeParked, nil // the order has got its operation since it was matched: this one is another's
	}
	trouble := order.AttentionUnapplied
	before := *o
	if n.OperationID != "" && !n.byCard && owners[n.OperationID] != o.orderKey {
		trouble = order.AttentionForeignOperation // one operation, two orders: this one is not its first
	} else {
		err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return s.applyOne(ctx, tx, o, n) })
		switch {
		case err == nil:
			return OutcomeApplied, nil
		case ctx.Err() != nil || Unavailable(err):
			return "", err
		}
		s.cfg.Log.Error("a notification could not be applied", "notificationId", n.id, "orderId", o.id, "error", err)
		*o = before
	}
	return OutcomeUnapplied, s.advanceOne(ctx, tx, o, n.cause(), order.Notice{Attention: trouble})
}

func (n *stored) cause() Cause {
	return Cause{Kind: CauseNotification, ID: strconv.FormatInt(n.id, 10)}
}

func (s *Store) applyOne(ctx context.Context, tx pgx.Tx, o *lockedOrder, n *stored) error {
	evidence := []order.Evidence{n.Evidence}
	if slices.Contains(o.state.Attention, order.AttentionUnapplied) {
		var others bool
		err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM notifications
			WHERE issuer_id = $1 AND order_id = $2 AND outcome = 'unapplied' AND id <> $3)`, o.issuer, o.id, n.id).Scan(&others)
		if err != nil {
			return fmt.Errorf("looking for other unapplied notifications: %w", err)
		}
		if !others {
			evidence = append(evidence, order.Cured{Attention: order.AttentionUnapplied})
		}
	}
	var b pgx.Batch
	if n.byCard && n.OperationID != "" {
		queueOperations(&b, []operation{{o.orderKey, n.OperationID, "notification"}})
	}
	if n.Shipment != (ShipmentUpdate{}) {
		queueShipment(&b, o.orderKey, n.Shipment)
		evidence = append(evidence, order.Details{})
	}
	if err := send(ctx, tx, &b); err != nil {
		return err
	}
	return s.advanceOne(ctx, tx, o, n.cause(), evidence...)
}

// settle writes what became of a notification. A parked or unapplied one is
// tried again, ever less often.
func settle(ctx context.Context, tx pgx.Tx, n *stored, outcome Outcome) error {
	var id *uuid.UUID
	if outcome != OutcomeParked {
		id = &n.order.id
		if n.order.id == uuid.Nil {
			id = nil
		}
	}
	_, err := tx.Exec(ctx, `
		UPDATE notifications SET outcome = $2, order_id = $3, tries = tries + 1,
			next_try_at = CASE WHEN $2 IN ('parked', 'unapplied') THEN now() + least(interval '1 h', interval '2 s' * (2 ^ least(tries, 12))) END
		WHERE id = $1`, n.id, outcome, id)
	if err != nil {
		return fmt.Errorf("settling a notification: %w", err)
	}
	return nil
}

// match finds the order of each PRODUCE notification: by the operation; else
// by issuerRequestId, and if that is there but unknown, not at all; else by the
// card, if exactly one order of it was sent and has no operation yet.
func match(ctx context.Context, tx pgx.Tx, issuer string, list []*stored) ([]*stored, error) {
	n := len(list)
	if n == 0 {
		return nil, nil
	}
	operations, requests, cards, starts, notByCard := make([]string, n), make([]string, n), make([]string, n), make([]time.Time, n), make([]bool, n)
	for i, e := range list {
		operations[i], requests[i], cards[i], starts[i], notByCard[i] = e.OperationID, e.IssuerRequestID, e.CardID, e.StartTime, e.NotByCard
	}
	rows, err := tx.Query(ctx, `
		SELECT n.i, coalesce(named, by_card), named IS NULL FROM (SELECT n.i, coalesce(
			(SELECT p.order_id FROM operations p WHERE p.issuer_id = $1 AND p.operation_id = n.operation_id),
			(SELECT o.id FROM orders o WHERE o.issuer_id = $1 AND o.issuer_request_id = n.request_id)) AS named,
			CASE WHEN n.request_id = '' AND NOT n.not_by_card THEN
				(SELECT (array_agg(o.id))[1] FROM orders o
					JOIN order_state s ON s.issuer_id = o.issuer_id AND s.order_id = o.id
					LEFT JOIN outbox m ON m.issuer_id = o.issuer_id AND m.order_id = o.id AND m.kind = 'submit'
				WHERE o.issuer_id = $1 AND o.card_id = n.card_id AND s.operation_id IS NULL AND s.status <> 'REJECTED'
					AND n.start_time >= coalesce(s.first_sent_at, m.first_sent_at) - $7::interval
				HAVING count(*) = 1)
			END AS by_card
		FROM unnest($2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::boolean[]) WITH ORDINALITY
			AS n(operation_id, request_id, card_id, start_time, not_by_card, i)) n ORDER BY n.i`,
		issuer, operations, requests, cards, starts, notByCard, order.ClockSkew)
	if err != nil {
		return nil, fmt.Errorf("matching notifications: %w", err)
	}
	var matched []*stored
	var i int
	var id *uuid.UUID
	var byCard bool
	_, err = pgx.ForEachRow(rows, []any{&i, &id, &byCard}, func() error {
		n := list[i-1]
		n.order, n.byCard = orderKey{}, byCard // a repeated transaction matches anew
		if id != nil {
			n.order = orderKey{issuer, *id}
			matched = append(matched, n)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("matching notifications: %w", err)
	}
	return matched, nil
}

// waiting is a stored notification that is to be tried again.
type waiting struct {
	id            int64
	issuer        string
	raw           []byte
	correlationID string
}

// sweepBatch is how many notifications one sweep tries.
const sweepBatch = 100

// Sweep tries notifications again that found no order or could not be applied:
// those with the given ids, or, without ids, those that are due. parse reads the
// bytes that were stored. It returns how many were applied, and whether there may
// be more.
func (s *Store) Sweep(ctx context.Context, ids []int64, parse func(issuer string, raw []byte, correlationID string) Notification) (applied int, more bool, err error) {
	list, err := s.due(ctx, ids)
	if err != nil {
		return 0, false, err
	}
	var failed []error
	for _, w := range list {
		n := &stored{Notification: parse(w.issuer, w.raw, w.correlationID), id: w.id}
		outcome, err := s.sweepOne(ctx, w.issuer, n)
		if Away(err) { // it is not this one that makes trouble
			return applied, false, fmt.Errorf("applying waiting notifications: %w", err)
		}
		if err != nil {
			failed = append(failed, err)
			s.postpone(ctx, w.id)
		}
		if outcome == OutcomeApplied {
			applied++
		}
	}
	if len(failed) > 0 {
		return applied, false, fmt.Errorf("applying waiting notifications: %w", errors.Join(failed...))
	}
	return applied, len(ids) == 0 && len(list) == sweepBatch, nil
}

// sweepOne applies one waiting notification, unless another replica does.
func (s *Store) sweepOne(ctx context.Context, issuer string, n *stored) (outcome Outcome, err error) {
	ctx, cancel := context.WithTimeout(ctx, groupTimeout) // a network that swallows everything must not end the sweeping
	defer cancel()
	var locked map[orderKey]*lockedOrder
	err = s.inTx(ctx, func(tx pgx.Tx) error {
		var still bool
		err := tx.QueryRow(ctx, `SELECT outcome IN ('parked', 'unapplied') FROM notifications WHERE id = $1 FOR UPDATE SKIP LOCKED`, n.id).Scan(&still)
		if errors.Is(err, pgx.ErrNoRows) || err == nil && !still {
			return nil // another replica has it
		}
		if err != nil {
			return fmt.Errorf("locking a waiting notification: %w", err)
		}
		locked, err = s.apply(ctx, tx, issuer, []*stored{n}, func(_ *stored, o Outcome) { outcome = o })
		return err
	})
	if err != nil {
		return "", err
	}
	s.logChanges(ctx, locked)
	return outcome, nil
}

// postpone keeps a notification that makes trouble from being the first again.
func (s *Store) postpone(ctx context.Context, id int64) {
	ctx, cancel := context.WithTimeout(ctx, groupTimeout)
	defer cancel()
	_, err := s.pool.Exec(ctx, `UPDATE notifications SET tries = tries + 1, next_try_at = now() + interval '1 min'
		WHERE id = $1 AND outcome IN ('parked', 'unapplied')`, id)
	if err != nil {
		s.cfg.Log.Error("a notification could not be postponed", "notificationId", id, "error", err)
	}
}

func (s *Store) due(ctx context.Context, ids []int64) ([]waiting, error) {
	ctx, cancel := context.WithTimeout(ctx, groupTimeout)
	defer cancel()
	condition, arg := `n.next_try_at <= now() AND $1::bigint[] IS NULL ORDER BY n.next_try_at LIMIT `+strconv.Itoa(sweepBatch), ids
	if len(ids) > 0 {
		condition = `n.id = ANY($1) ORDER BY n.id`
	}
	rows, err := s.pool.Query(ctx, `
		SELECT n.id, n.issuer_id, n.digest, n.body, coalesce(n.correlation_id, '') FROM notifications n
		WHERE n.outcome IN ('parked', 'unapplied') AND `+condition, arg)
	if err != nil {
		return nil, fmt.Errorf("looking for waiting notifications: %w", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (waiting, error) {
		var w waiting
		var digest, body []byte
		if err := row.Scan(&w.id, &w.issuer, &digest, &body, &w.correlationID); err != nil {
			return w, err
		}
		raw, err := s.cfg.Seal.open(body, columnNotification, w.issuer, string(digest))
		if err != nil {
			// It waits on as empty; its age raises the alarm.
			s.cfg.Log.Error("a stored notification cannot be opened", "notificationId", w.id, "error", err)
		}
		w.raw = raw
		return w, nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading waiting notifications: %w", err)
	}
	return list, nil
}
