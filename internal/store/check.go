package store

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"cardorder/internal/order"
)

// Each order has one timer, order_state.next_check_at: when time alone may change
// something about it, because it will be late, its schedule ends, or D1 has been silent
// for too long. The timer is lazy. Progress moves it to an earlier time only, so that a
// status changes within its page (HOT); a look that finds nothing to do puts it right.

// checkChunk is how many orders are looked at in one transaction: it bounds for how long
// they stay locked.
const checkChunk = 500

// Checked counts what a check did.
type Checked struct {
	Looked   int
	Released int // their schedule has ended
	Asked    int // D1 is to be asked about them
	More     bool
	Behind   time.Duration // for how long the first of them had been due
}

// Check looks at orders of an issuer whose time has come, some hundred at most, however
// little is known of D1 at the moment: it finds those that are late and those whose
// schedule has ended. It has D1 asked about those that nothing was heard of for too long,
// as long as no more than the given number of questions wait; the others are looked at
// again a while later, so that they keep none of the rest waiting.
func (s *Store) Check(ctx context.Context, issuer string, questions int) (Checked, error) {
	from := s.timers.of(issuer)
	room, behind, err := s.firstDue(ctx, issuer, questions, from)
	if err != nil || behind == nil {
		return Checked{}, err
	}
	done, err := s.checkSome(ctx, issuer, uuid.Nil, room, from)
	if err != nil && ctx.Err() == nil && !Unavailable(err) {
		done, err = s.checkEach(ctx, issuer, room)
	}
	if done.Released+done.Asked > 0 {
		s.cfg.OnReady(LaneOf(issuer))
	}
	done.Behind = *behind // also when it failed: they wait all the same
	if err != nil {
		return done, fmt.Errorf("looking at orders that are due: %w", err)
	}
	return done, nil
}

// checkSome looks at orders that are due, or at the given one of them, in one transaction.
func (s *Store) checkSome(ctx context.Context, issuer string, only uuid.UUID, room int, from pgtype.Timestamptz) (Checked, error) {
	var c check
	err := s.inTx(ctx, func(tx pgx.Tx) error {
		c = check{store: s, issuer: issuer, from: from, only: only, room: room}
		return c.run(ctx, tx)
	})
	if err != nil {
		return Checked{}, err
	}
	s.logChanges(ctx, c.locked)
	return c.done, nil
}

// checkEach looks at each by itself: one that cannot be dealt with must not strand the
// others. It is looked at again a minute later.
func (s *Store) checkEach(ctx context.Context, issuer string, room int) (sum Checked, err error) {
	rows, err := s.pool.Query(ctx, `
		SELECT s.order_id FROM order_state s WHERE s.issuer_id = $1 AND s.next_check_at <= now()
		ORDER BY s.next_check_at LIMIT $2`, issuer, checkChunk)
	if err != nil {
		return sum, err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return sum, err
	}
	for _, id := range ids {
		done, err := s.checkSome(ctx, issuer, id, room-sum.Asked, theFront)
		if err != nil && (ctx.Err() != nil || Unavailable(err)) {
			return sum, err
		}
		if err != nil {
			s.cfg.Log.Error("an order could not be looked at", "issuerId", issuer, "orderId", id, "error", err)
			if _, err := s.pool.Exec(ctx, `UPDATE order_state SET next_check_at = now() + interval '1 min'
				WHERE issuer_id = $1 AND order_id = $2 AND next_check_at <= now()`, issuer, id); err != nil {
				return sum, err
			}
		}
		sum.Looked, sum.Released, sum.Asked = sum.Looked+done.Looked, sum.Released+done.Released, sum.Asked+done.Asked
	}
	sum.More = len(ids) == checkChunk
	return sum, nil
}

// firstDue tells for how long the first order from a place on has been due to be looked
// at, nil for none, and how many questions D1 may be asked: the lane has other things to do.
func (s *Store) firstDue(ctx context.Context, issuer string, questions int, from pgtype.Timestamptz) (room int, behind *time.Duration, err error) {
	begun := time.Now()
	var now time.Time
	var b pgx.Batch
	exec(&b, steadyPlans)
	exec(&b, sortOff)
	b.Queue(`
		SELECT now(), (SELECT now() - s.next_check_at FROM order_state s
				WHERE s.issuer_id = $1 AND s.next_check_at <= now() AND s.next_check_at >= $5 ORDER BY s.next_check_at LIMIT 1),
			$4 - (SELECT count(*) FROM (SELECT FROM outbox m WHERE m.lane = $2 AND m.class = $3 AND m.run_at <= now() LIMIT $4) w)`,
		issuer, LaneOf(issuer), ClassQuestion, questions, from).QueryRow(func(row pgx.Row) error {
		return row.Scan(&now, &behind, &room)
	})
	if err := s.pool.SendBatch(ctx, &b).Close(); err != nil {
		return 0, nil, fmt.Errorf("looking for orders that are due: %w", err)
	}
	first := now.Add(-floorMargin)
	if behind != nil {
		first = now.Add(-*behind)
	}
	s.timers.learn(issuer, from, first, time.Since(begun))
	return room, behind, nil
}

// timers remember, for each issuer, before when no timer is left. Timers of orders that
// were looked at, or have ended, stay in the index until it is vacuumed. A check that had
// to pass them all is the last to do so for as long as makes that a small part of the
// time; then one begins at the front again, for timers that came to lie before the floor,
// or were committed late.
type timers struct {
	mu sync.Mutex
	m  map[string]floor // by issuer
}

const (
	// floorShare is the part of the time that goes to checks from the front: one in so many.
	floorShare = 20
	// floorMargin is for transactions that commit late.
	floorMargin = 30 * time.Second
)

// theFront is before every timer.
var theFront = orFirst(time.Time{})

func (t *timers) of(issuer string) pgtype.Timestamptz {
	t.mu.Lock()
	defer t.mu.Unlock()
	known := t.m[issuer]
	if time.Now().After(known.until) {
		return theFront
	}
	return pgtype.Timestamptz{Time: known.at, Valid: true}
}

// learn takes note of the first timer found from a place on, and of how long that took.
func (t *timers) learn(issuer string, from pgtype.Timestamptz, first time.Time, took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	next := floor{first, t.m[issuer].until}
	if from == theFront {
		next.until = time.Now().Add(floorShare * took)
	}
	if t.m == nil {
		t.m = make(map[string]floor)
	}
	t.m[issuer] = next
}

// check is one look at orders that are due.
type check struct {
	store  *Store
	issuer string
	from   pgtype.Timestamptz // the first timer that is looked at
	only   uuid.UUID          // of those that are due, unless it is nil
	room   int                // for questions

	locked map[orderKey]*lockedOrder
	done   Checked
}

func (c *check) run(ctx context.Context, tx pgx.Tx) error {
	list, err := c.lock(ctx, tx)
	if err != nil || len(list) == 0 {
		return err
	}
	c.done.Looked, c.done.More = len(list), len(list) == checkChunk
	var ends []orderKey
	for _, o := range list {
		if o.state.ScheduleEnded(c.store.clock(o)) {
			ends = append(ends, o.orderKey)
		}
	}
	if len(ends) > 0 { // whether D1 has them all the same
		var b pgx.Batch
		keysGiven(ends).queueKnownOperations(&b, c.locked, make(map[string]orderKey))
		if err := send(ctx, tx, &b); err != nil {
			return err
		}
	}
	w := advances{store: c.store}
	var silent, unchanged []*lockedOrder
	for _, o := range list {
		if c.look(&w, o) {
			silent = append(silent, o)
		}
	}
	for _, o := range list {
		if len(o.changes) == 0 {
			unchanged = append(unchanged, o)
		}
	}
	var b pgx.Batch
	w.queue(&b)
	queueLooks(&b, c.store, unchanged)
	queueQuestions(&b, silent)
	return send(ctx, tx, &b)
}

// lock locks orders that are due, longest first. Those that somebody else has locked are
// passed: they are looked at next time, if need be. While the database is in another
// history than the one remembered there are none, and none is marked until this is done:
// what is released meanwhile may have been sent in that history.
func (c *check) lock(ctx context.Context, tx pgx.Tx) (list []*lockedOrder, err error) {
	c.locked = make(map[orderKey]*lockedOrder)
	var b pgx.Batch
	exec(&b, steadyPlans)
	exec(&b, sortOff)
	exec(&b, historyStays)
	b.Queue(`
		SELECT `+lockColumns+`
		FROM order_state s JOIN orders o ON o.issuer_id = s.issuer_id AND o.id = s.order_id
		WHERE s.issuer_id = $1 AND s.next_check_at <= now() AND s.next_check_at >= $4 AND ($3::uuid IS NULL OR s.order_id = $3)
			AND `+sameHistory+`
		ORDER BY s.next_check_at LIMIT $2
		FOR UPDATE OF s SKIP LOCKED`, c.issuer, checkChunk, optionalID(c.only), c.from).Query(func(rows pgx.Rows) error {
		return eachLocked(rows, func(o *lockedOrder) {
			c.locked[o.orderKey] = o
			list = append(list, o)
		})
	})
	exec(&b, sortOn)
	return list, send(ctx, tx, &b)
}

// look does what the time asks for with one order, and tells whether D1 is to be asked
// about it.
func (c *check) look(w *advances, o *lockedOrder) (ask bool) {
	clock := c.store.clock(o)
	var evidence []order.Evidence
	if o.state.ScheduleEnded(clock) {
		evidence = append(evidence, order.Release{})
		c.done.Released++
	}
	o.looked = true
	if c.room > 0 && o.state.ToBeAsked(clock) {
		ask = true
		c.room--
		c.done.Asked++
		o.checks, o.asked = min(o.checks+1, maxChecks), true
	}
	w.advance(o, Cause{Kind: CauseTime}, evidence...)
	return ask
}

// maxChecks is where the counting of questions ends: the waits between them grow no more.
const maxChecks = 100

// clock is the time at which an order was locked, with what matters of it for that.
func (s *Store) clock(o *lockedOrder) order.Clock {
	c := order.Clock{
		Now: o.now, Limits: s.limits(o.issuer, o.cardProductID), Issuance: o.issuance, Urgent: o.urgent, Accepted: o.createdAt,
		NotBefore: timeOf(o.notBefore), Sent: timeOf(o.firstSentAt), Heard: timeOf(o.heardAt), Checks: o.checks,
	}
	if o.asked {
		c.Asked = o.now
	}
	return c
}

// nextLook is when an order has to be looked at again. Progress puts questions off for as
// long as it can, so that it finds a time that is early enough.
func (s *Store) nextLook(o *lockedOrder) pgtype.Timestamptz {
	spread := 1.0
	if o.looked {
		spread = rand.Float64()
	}
	return timeOrNull(order.NextLook(o.state, s.clock(o), spread))
}

func timeOf(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
}

// queueLooks queues the next looks at orders that were looked at and did not change.
func queueLooks(b *pgx.Batch, s *Store, list []*lockedOrder) {
	n := len(list)
	if n == 0 {
		return
	}
	issuers, ids := columns(keysOf(list))
	looks, checks := make([]pgtype.Timestamptz, n), make([]int, n)
	for i, o := range list {
		looks[i], checks[i] = s.nextLook(o), o.checks
	}
	exec(b, `
		UPDATE order_state s SET next_check_at = t.look, checks = t.checks
		FROM unnest($1::text[], $2::uuid[], $3::timestamptz[], $4::smallint[]) AS t(issuer_id, order_id, look, checks)
		WHERE s.issuer_id = t.issuer_id AND s.order_id = t.order_id`, issuers, ids, looks, checks)
}

// queueQuestions has D1 asked about orders, unless it is to be asked already.
func queueQuestions(b *pgx.Batch, list []*lockedOrder) {
	n := len(list)
	if n == 0 {
		return
	}
	issuers, ids := columns(keysOf(list))
	cards, firsts := make(texts, n), make([]time.Time, n)
	for i, o := range list {
		cards[i], firsts[i] = o.cardID, o.createdAt
		if o.firstSentAt != nil {
			firsts[i] = *o.firstSentAt
		}
	}
	exec(b, `
		INSERT INTO outbox (lane, kind, class, issuer_id, order_id, card_id, first_sent_at)
		SELECT $5 || issuer_id, $6, $7::smallint, issuer_id, order_id, card_id, first
		FROM unnest($1::text[], $2::uuid[], $3::text[], $4::timestamptz[]) AS t(issuer_id, order_id, card_id, first)
		ORDER BY order_id
		ON CONFLICT (issuer_id, order_id, kind) DO NOTHING`,
		issuers, ids, cards, firsts, LaneOf(""), KindAsk, ClassQuestion)
}

// Adopt sees to it that open orders of an issuer are looked at that have no time for it:
// they were stored by an earlier release, or it looked at them last, or their program had
// no limits then. It goes through them in the order of their ids, some hundred after the
// given one, and returns how far it came, the nil id at the end. They get times within the
// next hour, and what is scheduled the time that it is scheduled for.
func (s *Store) Adopt(ctx context.Context, issuer string, after uuid.UUID) (last uuid.UUID, err error) {
	err = s.inTx(ctx, func(tx pgx.Tx) error {
		last, err = s.adopt(ctx, tx, issuer, after)
		return err
	})
	if err != nil {
		return after, fmt.Errorf("looking for orders that nobody looks at: %w", err)
	}
	return last, nil
}

func (s *Store) adopt(ctx context.Context, tx pgx.Tx, issuer string, after uuid.UUID) (last uuid.UUID, err error) {
	var forgotten []uuid.UUID
	var seen int
	var b pgx.Batch
	exec(&b, steadyPlans)
	exec(&b, sortOff)
	b.Queue(`
		SELECT s.order_id, s.next_check_at IS NULL, s.due_date IS NOT NULL OR s.hold = 'schedule' AND s.status = 'HELD', o.card_product_id
		FROM order_state s JOIN orders o ON o.issuer_id = s.issuer_id AND o.id = s.order_id
		WHERE s.issuer_id = $1 AND s.ended_at IS NULL AND s.order_id > $2
		ORDER BY s.order_id LIMIT $3`, issuer, after, checkChunk).Query(func(rows pgx.Rows) error {
		return each(rows, func() error {
			var none, due bool // without a time, with something to look for in any case
			var product string
			if err := rows.Scan(&last, &none, &due, &product); err != nil {
				return err
			}
			if seen++; none && (due || s.limits(issuer, product).Any()) {
				forgotten = append(forgotten, last)
			}
			return nil
		})
	})
	if err := send(ctx, tx, &b); err != nil {
		return after, err
	}
	if seen < checkChunk {
		last = uuid.Nil
	}
	if len(forgotten) == 0 {
		return last, nil
	}
	_, err = tx.Exec(ctx, `
		WITH forgotten AS (
			SELECT s.issuer_id, s.order_id, CASE WHEN s.hold = 'schedule' THEN o.not_before END AS scheduled
			FROM unnest($2::uuid[]) AS t(order_id)
				JOIN order_state s ON s.issuer_id = $1 AND s.order_id = t.order_id
				JOIN orders o ON o.issuer_id = s.issuer_id AND o.id = s.order_id
			WHERE s.next_check_at IS NULL AND s.ended_at IS NULL
			FOR UPDATE OF s SKIP LOCKED
		)
		UPDATE order_state s SET next_check_at = coalesce(scheduled, now() + random() * interval '1 h')
		FROM forgotten f WHERE s.issuer_id = f.issuer_id AND s.order_id = f.order_id`, issuer, forgotten)
	return last, err
}

// limits are the times that the orders of a card product are held to, nil for none.
func (s *Store) limits(issuer, product string) *order.Limits {
	if s.cfg.Limits == nil {
		return nil
	}
	return s.cfg.Limits(issuer, product)
}
