package store

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"cardorder/internal/order"
)

// lockedOrder is an order whose state this transaction has locked.
type lockedOrder struct {
	orderKey
	stored        order.State // as the table has it
	state         order.State // as it is with what is still to be written
	firstSentAt   *time.Time
	now           time.Time // when it was locked, by the database's clock
	cardID        string
	cardProductID string
	issuance      order.Issuance
	urgent        bool
	createdAt     time.Time   // when it was accepted
	notBefore     *time.Time  // when it may be sent
	heardAt       *time.Time  // when D1 last told something new of it
	checks        int         // how often D1 was asked in vain since then
	operations    []string    // every PRODUCE operation seen for it
	submit        int64       // the message that brings it to D1, when this transaction has locked it
	doubted       bool        // it has its status from before the database's history changed: D1 may have it
	halt          BatchAction // hold or cancel, when one came while D1 may have had it
	admitted      bool        // a person released it in spite of the program's rule
	looked        bool        // its time had come: it gets another one, earlier or later
	asked         bool        // D1 is to be asked about it because of that
	open          []openChange
	changes       []change // made in this transaction, to be logged after it
}

// change is one version of an order.
type change struct {
	before, after order.State
	cause         Cause
}

// logChanges writes one line for each change that was committed.
func (s *Store) logChanges(ctx context.Context, locked map[orderKey]*lockedOrder) {
	for _, o := range locked {
		for _, c := range o.changes {
			level := slog.LevelInfo
			if c.cause.Kind == CauseReconciliation {
				level = slog.LevelWarn // D1's word of it was lost
				s.cfg.OnDrift(o.issuer, differenceOf(c.before, c.after))
			}
			if c.after.Late && !c.before.Late {
				s.cfg.OnLate(o.issuer, c.after.Status)
			}
			for _, a := range c.after.Attention {
				if !slices.Contains(c.before.Attention, a) {
					level = slog.LevelWarn // somebody should look
					s.cfg.OnAttention(o.issuer, a)
				}
			}
			// Strings only: it is written for every change, and what is not costs reflection.
			attrs := append(make([]slog.Attr, 0, 9), slog.String("issuerId", o.issuer), slog.String("orderId", o.id.String()),
				slog.Int("version", c.after.Version), slog.String("from", string(c.before.Status)), slog.String("status", string(c.after.Status)),
				slog.String("operationId", c.after.OperationID), slog.String("cause", string(c.cause.Kind)), slog.String("causeId", c.cause.ID))
			if len(c.after.Attention) > 0 {
				attrs = append(attrs, slog.Any("attention", c.after.Attention))
			}
			s.cfg.Log.LogAttrs(ctx, level, "order changed", attrs...)
		}
	}
}

// operation is a PRODUCE operation of D1 that was seen for an order.
type operation struct {
	key    orderKey
	id     string
	source string
}

// lockOrders locks orders, in the one order that all transactions use, and reads where
// they stand.
func lockOrders(ctx context.Context, tx pgx.Tx, keys []orderKey) (map[orderKey]*lockedOrder, error) {
	locked := make(map[orderKey]*lockedOrder, len(keys))
	if len(keys) == 0 {
		return locked, nil
	}
	var b pgx.Batch
	exec(&b, steadyPlans)
	orders := keysGiven(keys)
	orders.queueLocks(&b, locked)
	orders.queueKnownOperations(&b, locked, make(map[string]orderKey))
	orders.queueHalts(&b, locked)
	if err := send(ctx, tx, &b); err != nil {
		return nil, fmt.Errorf("locking orders: %w", err)
	}
	return locked, nil
}

// lockToAct is lockOrders for what people do with orders: it may bring orders without a message
// one, and those of before the database's history changed are to be asked about. So that
// change is not noticed meanwhile: such a message is there before others are marked, or is made
// in the know of it.
func lockToAct(ctx context.Context, tx pgx.Tx, keys []orderKey) (map[orderKey]*lockedOrder, error) {
	if _, err := tx.Exec(ctx, historyStays); err != nil {
		return nil, fmt.Errorf("locking the database's history: %w", err)
	}
	return lockOrders(ctx, tx, keys)
}

// keySet is a set of orders in a statement: what stands behind its FROM, with two
// columns, and the arguments of that.
type keySet struct {
	sql  string
	args []any
}

func keysGiven(keys []orderKey) keySet {
	issuers, ids := columns(distinctKeys(keys))
	return keySet{`unnest($1::text[], $2::uuid[])`, []any{issuers, ids}}
}

// queueLocks queues the locking of orders; locked is filled when the batch is run.
// Statements of one round trip have each a snapshot of their own: what is read after a
// lock includes what others wrote before it.
func (k keySet) queueLocks(b *pgx.Batch, locked map[orderKey]*lockedOrder) {
	b.Queue(`
		SELECT `+lockColumns+`
		FROM `+k.sql+` AS t(issuer_id, order_id)
			JOIN order_state s ON s.issuer_id = t.issuer_id AND s.order_id = t.order_id
			JOIN orders o ON o.issuer_id = s.issuer_id AND o.id = s.order_id
		ORDER BY s.issuer_id, s.order_id
		FOR UPDATE OF s`,
		k.args...).Query(func(rows pgx.Rows) error {
		return eachLocked(rows, func(o *lockedOrder) { locked[o.orderKey] = o })
	})
}

// unchangedSince is since when an order s has its status. What else happens to one that D1 was
// not asked about, as a note or a hold, says nothing of what became of it in another history.
// Before migration 10 nobody noted the time.
const unchangedSince = `least(s.status_since, s.updated_at)`

// lockColumns are what makes a lockedOrder, of order_state s and orders o.
const lockColumns = `s.issuer_id, s.order_id, s.first_sent_at, clock_timestamp(), o.card_id, o.card_product_id,
			coalesce(o.terms #>> '{services,issuance}', ''), o.urgent, o.created_at, o.not_before, s.heard_at, s.checks,
			coalesce(` + unchangedSince + ` < (SELECT seen_at FROM database_history WHERE only_row), false),
			s.open_changes, ` + stateColumns

// eachLocked calls f with the order of each row. What the rows are scanned into is made
// once for all of them.
func eachLocked(rows pgx.Rows, f func(*lockedOrder)) error {
	var o lockedOrder
	var id pgtype.UUID
	fields := append([]any{
		&o.issuer, &id, &o.firstSentAt, &o.now, &o.cardID, &o.cardProductID,
		&o.issuance, &o.urgent, &o.createdAt, &o.notBefore, &o.heardAt, &o.checks, &o.doubted, &o.open,
	}, stateFields(&o.state)...)
	return each(rows, func() error {
		o = lockedOrder{}
		if err := rows.Scan(fields...); err != nil {
			return err
		}
		o.id, o.stored = id.Bytes, o.state
		one := o
		f(&one)
		return nil
	})
}

// queueKnownOperations queues the reading of every PRODUCE operation seen for orders.
// The range and the order leave one index to read them by, whatever the statistics say.
func (k keySet) queueKnownOperations(b *pgx.Batch, locked map[orderKey]*lockedOrder, owners map[string]orderKey) {
	exec(b, sortOff)
	b.Queue(`
		SELECT t.issuer_id, t.order_id, p.operation_id
		FROM `+k.sql+` AS t(issuer_id, order_id) CROSS JOIN LATERAL (
			SELECT p.operation_id FROM operations p
			WHERE p.issuer_id = t.issuer_id AND p.order_id BETWEEN t.order_id AND t.order_id AND p.operation = 'PRODUCE'
			ORDER BY p.order_id LIMIT 100) p`,
		k.args...).Query(func(rows pgx.Rows) error {
		return each(rows, func() error {
			var issuer, id string
			var orderID pgtype.UUID
			if err := rows.Scan(&issuer, &orderID, &id); err != nil {
				return err
			}
			key := orderKey{issuer, orderID.Bytes}
			owners[id] = key
			if o := locked[key]; o != nil {
				o.operations = append(o.operations, id)
			}
			return nil
		})
	})
	exec(b, sortOn)
}

// queueHalts queues the reading of holds and cancels that came too late: they are
// written while the order is locked.
func (k keySet) queueHalts(b *pgx.Batch, locked map[orderKey]*lockedOrder) {
	b.Queue(`
		SELECT m.issuer_id, m.order_id, m.halt
		FROM `+k.sql+` AS t(issuer_id, order_id)
			JOIN outbox m ON m.issuer_id = t.issuer_id AND m.order_id = t.order_id AND m.kind = 'submit' AND m.halt IS NOT NULL`,
		k.args...).Query(func(rows pgx.Rows) error {
		return each(rows, func() error {
			var key orderKey
			var halt BatchAction
			if err := rows.Scan(&key.issuer, &key.id, &halt); err != nil {
				return err
			}
			if o := locked[key]; o != nil {
				o.halt = halt
			}
			return nil
		})
	})
}

func queueOperations(b *pgx.Batch, seen []operation) {
	if len(seen) == 0 {
		return
	}
	// Sorted, so that two transactions never wait for each other's rows.
	slices.SortFunc(seen, func(x, y operation) int {
		return cmp.Or(cmp.Compare(x.key.issuer, y.key.issuer), cmp.Compare(x.id, y.id))
	})
	n := len(seen)
	issuers, ids, orders, sources := make(texts, n), make(texts, n), make(uuids, n), make(texts, n)
	for i, op := range seen {
		issuers[i], ids[i], orders[i], sources[i] = op.key.issuer, op.id, pgID(&op.key.id), op.source
	}
	exec(b, `
		INSERT INTO operations (issuer_id, operation_id, order_id, operation, source)
		SELECT i, p, o, 'PRODUCE', s FROM unnest($1::text[], $2::text[], $3::uuid[], $4::text[]) AS t(i, p, o, s)
		ON CONFLICT DO NOTHING`, issuers, ids, orders, sources)
}

func distinctKeys(keys []orderKey) []orderKey {
	seen := make(map[orderKey]bool, len(keys))
	list := make([]orderKey, 0, len(keys))
	for _, k := range keys {
		if !seen[k] {
			seen[k] = true
			list = append(list, k)
		}
	}
	return list
}

func columns(keys []orderKey) (issuers texts, ids uuids) {
	issuers, ids = make(texts, len(keys)), make(uuids, len(keys))
	for i, k := range keys {
		issuers[i], ids[i] = k.issuer, pgID(&k.id)
	}
	return issuers, ids
}

// advances gathers what follows from evidence about locked orders, so that each table
// is written by one statement, however many orders there are.
type advances struct {
	store  *Store
	orders []*lockedOrder // with something to write, each once
	events []event

	changes  []changeRow    // what becomes of changes, each once
	changing []*lockedOrder // whose list of open changes differs, each once
	sending  []*lockedOrder // that may have a change to be sent, each once
	// changeOperations are what D1 calls changes.
	changeOperations []changeOperation
	placed           []placedChange
}

// event is a row of order_events.
type event struct {
	key      orderKey
	kind     EventType
	state    order.State
	previous order.Status
	cause    Cause
}

// advance advances a locked order by evidence.
func (a *advances) advance(o *lockedOrder, cause Cause, evidence ...order.Evidence) {
	before := o.state
	evidence = append(evidence, order.Operations{IDs: o.operations})
	clock := a.store.clock(o)
	next, changed := order.Advance(before, clock, evidence...)
	if o.halt != "" && !o.cancelling() && before.ToBeSent() && !next.Waiting() && next.Rank > 0 {
		// D1 has the order that somebody wanted held; a cancel is sent to it.
		next, changed = order.Advance(before, clock, append(evidence, order.Notice{Attention: order.AttentionStopTooLate})...)
	}
	if !changed {
		return
	}
	if cause.Kind == CauseReconciliation && next.OnlyTime(before) {
		cause = Cause{Kind: CauseTime} // D1 had nothing to say that was not known
	}
	o.state = next
	if next.Rank > 0 && cause.fromD1() {
		o.heardAt, o.checks = &o.now, 0
	}
	o.changes = append(o.changes, change{before, next, cause})
	a.touch(o)
	a.events = append(a.events, event{o.orderKey, cmp.Or(cause.Action, eventType(before, next)), next, before.Status, cause})
	a.settleChanges(o, cause)
}

func (a *advances) touch(o *lockedOrder) {
	if !slices.Contains(a.orders, o) {
		a.orders = append(a.orders, o)
	}
}

func eventType(before, after order.State) EventType {
	switch {
	case before.Status != after.Status:
		return EventStatusChanged
	case !slices.Equal(before.Attention, after.Attention):
		return EventAttentionChanged
	case before.Late != after.Late:
		return EventLateChanged
	}
	return EventDetailsChanged
}

// queue queues every write that follows: states, events, the ends of submit messages
// that have become pointless, new ones, and the guards of cards.
func (a *advances) queue(b *pgx.Batch) {
	if len(a.orders) == 0 {
		a.queueChanges(b)
		return
	}
	var sent, unsent []*lockedOrder
	var released, held, regained guardRows
	for _, o := range a.orders {
		before, next := o.stored, o.state
		switch was, is := before.ToBeSent(), next.ToBeSent(); {
		case was && !is:
			sent = append(sent, o)
		case is && !was:
			unsent = append(unsent, o)
		}
		switch ended := next.Ended(); {
		case ended && (!before.Ended() || next.Made() != before.Made()):
			var until *time.Duration
			if o.issuance == order.IssuanceCreation && next.Made() {
				window := a.store.duplicateWindow(o.issuer, o.cardProductID)
				until = &window
			}
			if before.Ended() {
				regained.add(o, nil) // its card was given up when it first ended
			}
			released.add(o, until)
		case !ended && before.Ended():
			held.add(o, nil)
		}
	}
	a.queueStates(b)
	a.queueEvents(b)
	queueRetired(b, sent)
	queueSubmits(b, unsent)
	a.queueChanges(b)
	queueHeldGuards(b, regained)
	queueReleasedGuards(b, released)
	queueHeldGuards(b, held)
	for _, o := range a.orders {
		o.stored = o.state // what is queued after this compares with it
	}
}

// changed is a column of a statement that writes the states of orders: nil when it stays
// as it is for all of them. What an array lacks is NULL to the statement.
func changed[T comparable](list []*lockedOrder, value func(*order.State) T) []T {
	column := make([]T, len(list))
	differs := false
	for i, o := range list {
		column[i] = value(&o.state)
		differs = differs || column[i] != value(&o.stored)
	}
	if !differs {
		return nil
	}
	return column
}

// putAt puts the value of row i into a column in which few rows have one. What an array
// lacks is NULL to the statement.
func putAt[S ~[]E, E any](column S, i int, value E) S {
	return append(append(column, make(S, i-len(column))...), value)
}

// queueStates writes the states. Most columns stay as they are for most lists: they cost
// nothing then, neither here nor in the database, and the statement is the same.
func (a *advances) queueStates(b *pgx.Batch) {
	n := len(a.orders)
	issuers, ids, versions := make(texts, n), make(uuids, n), make([]int, n)
	ended, firsts := make([]int, n), make(times, n)
	dues, heards, looks, checks := make(times, n), make(times, n), make(times, n), make([]int, n)
	var ends, looked = false, []bool(nil)
	for i, o := range a.orders {
		before, s := &o.stored, &o.state
		issuers[i], ids[i], versions[i] = o.issuer, pgID(&o.id), s.Version
		ended[i] = becomes(before.Ended(), s.Ended())
		ends = ends || ended[i] != 0
		dues[i] = timeOrNull(s.DueAt)
		firsts[i], heards[i], checks[i] = timeOrNull(timeOf(o.firstSentAt)), timeOrNull(timeOf(o.heardAt)), o.checks
		looks[i] = a.store.nextLook(o)
		if o.looked {
			looked = putAt(looked, i, true)
		}
	}
	if !ends {
		ended = nil
	}
	text := func(value func(*order.State) string) texts { return changed(a.orders, value) }
	rank := func(value func(*order.State) int) []int { return changed(a.orders, value) }
	exec(b, `
		UPDATE order_state s SET version = t.version, status = coalesce(t.status, s.status), rank = coalesce(t.rank, s.rank),
			step_rank = coalesce(t.step_rank, s.step_rank), top_rank = coalesce(t.top_rank, s.top_rank), end_rank = coalesce(t.end_rank, s.end_rank),
			operation_id = nullif(coalesce(t.operation_id, s.operation_id), ''), attention = coalesce(t.attention::text[], s.attention),
			due_date = nullif(coalesce(t.due_date, s.due_date), ''), due_date_rank = coalesce(t.due_date_rank, s.due_date_rank),
			production_site = nullif(coalesce(t.production_site, s.production_site), ''),
			production_site_rank = coalesce(t.production_site_rank, s.production_site_rank), updated_at = now(),
			ended_at = CASE t.ended WHEN 1 THEN now() WHEN 2 THEN NULL ELSE s.ended_at END,
			next_check_at = CASE WHEN t.looked OR t.look IS NULL THEN t.look ELSE least(s.next_check_at, t.look) END,
			checks = t.checks, heard_at = t.heard, late_in = nullif(coalesce(t.late_in::text[], s.late_in), '{}'),
			first_sent_at = t.first_sent_at, hold = nullif(coalesce(t.hold, s.hold), ''), status_since = coalesce(t.since, s.status_since), due_at = t.due,
			late = coalesce(t.late, s.late), acknowledged = coalesce(t.acknowledged::text[], s.acknowledged), parcels = coalesce(t.parcels::text[], s.parcels)
		FROM unnest($1::text[], $2::uuid[], $3::integer[], $4::text[], $5::smallint[], $6::smallint[], $7::smallint[], $8::smallint[],
			$9::text[], $10::text[], $11::text[], $12::smallint[], $13::text[], $14::smallint[], $15::smallint[], $16::timestamptz[],
			$17::text[], $18::timestamptz[], $19::timestamptz[], $20::boolean[], $21::text[], $22::text[],
			$23::text[], $24::timestamptz[], $25::smallint[], $26::timestamptz[], $27::boolean[])
			AS t(issuer_id, order_id, version, status, rank, step_rank, top_rank, end_rank,
				operation_id, attention, due_date, due_date_rank, production_site, production_site_rank, ended, first_sent_at,
				hold, since, due, late, acknowledged, parcels, late_in, heard, checks, look, looked)
		WHERE s.issuer_id = t.issuer_id AND s.order_id = t.order_id`,
		issuers, ids, versions, text(func(s *order.State) string { return string(s.Status) }),
		rank(func(s *order.State) int { return s.Rank }), rank(func(s *order.State) int { return s.StepRank }),
		rank(func(s *order.State) int { return s.TopRank }), rank(func(s *order.State) int { return s.EndRank }),
		text(func(s *order.State) string { return s.OperationID }), text(func(s *order.State) string { return codeArray(s.Attention) }),
		text(func(s *order.State) string { return s.DueDate.Value }), rank(func(s *order.State) int { return s.DueDate.Rank }),
		text(func(s *order.State) string { return s.ProductionSite.Value }), rank(func(s *order.State) int { return s.ProductionSite.Rank }),
		ended, firsts, text(func(s *order.State) string { return string(s.Hold) }),
		times(changed(a.orders, func(s *order.State) pgtype.Timestamptz { return timeOrNull(s.Since) })), dues,
		changed(a.orders, func(s *order.State) bool { return s.Late }),
		text(func(s *order.State) string { return codeArray(s.Acknowledged) }), text(func(s *order.State) string { return textArray(s.Parcels) }),
		text(func(s *order.State) string { return codeArray(s.LateIn) }), heards, checks, looks, looked)
}

// becomes is 0 when nothing changes, 1 when something becomes true, 2 when it ends.
func becomes(before, after bool) int {
	switch {
	case before == after:
		return 0
	case after:
		return 1
	}
	return 2
}

func (a *advances) queueEvents(b *pgx.Batch) {
	n := len(a.events)
	if n == 0 {
		return
	}
	issuers, ids, seqs, kinds := make(texts, n), make(uuids, n), make([]int, n), make(texts, n)
	statuses, previous, causes, causeIDs := make(texts, n), make(texts, n), make(texts, n), make(texts, n)
	// Most lists have none of these.
	var attention, actors, details texts
	var lates []bool
	for i, e := range a.events {
		issuers[i], ids[i], seqs[i], kinds[i] = e.key.issuer, pgID(&e.key.id), e.state.Version, string(e.kind)
		statuses[i], previous[i] = string(e.state.Status), string(e.previous)
		causes[i], causeIDs[i] = string(e.cause.Kind), e.cause.ID
		if len(e.state.Attention) > 0 {
			attention = putAt(attention, i, codeArray(e.state.Attention))
		}
		if e.cause.Actor != "" {
			actors = putAt(actors, i, e.cause.Actor)
		}
		if len(e.cause.Detail) > 0 {
			details = putAt(details, i, string(e.cause.Detail))
		}
		if e.state.Late {
			lates = putAt(lates, i, true)
		}
	}
	exec(b, `
		INSERT INTO order_events (issuer_id, order_id, seq, type, status, previous_status, attention, cause, cause_id, actor, detail, late)
		SELECT i, o, s, k, st, nullif(p, ''), coalesce(nullif(a, '')::text[], '{}'), c, nullif(ci, ''), nullif(ac, ''), nullif(d, '')::jsonb, coalesce(l, false)
		FROM unnest($1::text[], $2::uuid[], $3::integer[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[],
				$12::boolean[])
			AS t(i, o, s, k, st, p, a, c, ci, ac, d, l)`,
		issuers, ids, seqs, kinds, statuses, previous, attention, causes, causeIDs, actors, details, lates)
}

// queueRetired ends the submit messages of orders that need no sending any more.
func queueRetired(b *pgx.Batch, list []*lockedOrder) {
	if len(list) == 0 {
		return
	}
	var locked []int64
	var others []*lockedOrder
	for _, o := range list {
		if o.submit != 0 {
			locked = append(locked, o.submit)
		} else {
			others = append(others, o)
		}
	}
	if len(locked) > 0 {
		exec(b, `DELETE FROM outbox WHERE id = ANY ($1)`, locked)
	}
	if len(others) == 0 {
		return
	}
	issuers, ids := columns(keysOf(others))
	exec(b, `
		DELETE FROM outbox m USING unnest($1::text[], $2::uuid[]) AS t(issuer_id, order_id)
		WHERE m.issuer_id = t.issuer_id AND m.order_id = t.order_id AND m.kind = 'submit'`, issuers, ids)
}

// queueSubmits adds the messages of orders that are to be sent. D1 has an order already
// when it told of it meanwhile, and may have one that was sent in another history of the
// database: it is then asked first.
func queueSubmits(b *pgx.Batch, list []*lockedOrder) {
	if len(list) == 0 {
		return
	}
	issuers, ids := columns(keysOf(list))
	known, doubted, admitted := make([]bool, len(list)), make([]bool, len(list)), make([]bool, len(list))
	for i, o := range list {
		known[i], doubted[i], admitted[i] = len(o.operations) > 0, o.doubted, o.admitted
	}
	exec(b, `
		INSERT INTO outbox (lane, kind, class, issuer_id, order_id, card_id, first_sent_at, maybe_sent_at, admitted_at)
		SELECT $5 || o.issuer_id, 'submit', CASE WHEN o.batch_id IS NULL OR o.urgent THEN $6::smallint ELSE $7 END, o.issuer_id, o.id, o.card_id,
			coalesce(s.first_sent_at, p.since, CASE WHEN t.doubted THEN o.created_at END),
			CASE WHEN t.known OR t.doubted OR p.since IS NOT NULL THEN now() END, CASE WHEN t.admitted THEN now() END
		FROM unnest($1::text[], $2::uuid[], $3::boolean[], $4::boolean[], $8::boolean[]) AS t(issuer_id, order_id, known, doubted, admitted)
			JOIN orders o ON o.issuer_id = t.issuer_id AND o.id = t.order_id
			JOIN order_state s ON s.issuer_id = o.issuer_id AND s.order_id = o.id
			CROSS JOIN LATERAL (SELECT min(n.created_at) AS since FROM notifications n
				WHERE n.issuer_id = o.issuer_id AND n.issuer_request_id = o.issuer_request_id AND n.outcome = 'parked') p
		ORDER BY t.order_id`, issuers, ids, known, doubted, LaneOf(""), ClassSingle, ClassBatch, admitted)
}

func keysOf(list []*lockedOrder) []orderKey {
	keys := make([]orderKey, len(list))
	for i, o := range list {
		keys[i] = o.orderKey
	}
	return keys
}

// guardRows are orders whose card is released or held.
type guardRows struct {
	issuers, cards texts
	ids            uuids
	until          []*time.Duration
}

func (g *guardRows) add(o *lockedOrder, until *time.Duration) {
	g.issuers, g.cards = append(g.issuers, o.issuer), append(g.cards, o.cardID)
	g.ids, g.until = append(g.ids, pgID(&o.id)), append(g.until, until)
}

// queueReleasedGuards queues what the ends of orders mean for their cards: an order
// holds its card no longer, and a CREATION that was produced bars another for a while.
// Cards are locked by their bytes, as all transactions do that come to several.
func queueReleasedGuards(b *pgx.Batch, g guardRows) {
	if len(g.ids) == 0 {
		return
	}
	exec(b, `
		WITH released AS (
			SELECT issuer_id, card_id, array_agg(id) AS ids, max(until) AS until, (array_agg(id ORDER BY until DESC NULLS LAST))[1] AS creation
			FROM unnest($1::text[], $2::text[], $3::uuid[], $4::interval[]) AS t(issuer_id, card_id, id, until)
			GROUP BY issuer_id, card_id
		), locked AS (
			SELECT r.* FROM released r JOIN card_guard g ON g.issuer_id = r.issuer_id AND g.card_id = r.card_id
			ORDER BY r.issuer_id COLLATE "C", r.card_id COLLATE "C" FOR UPDATE OF g
		)
		UPDATE card_guard g SET
			order_ids = ARRAY(SELECT u.id FROM unnest(g.order_ids) WITH ORDINALITY AS u(id, n) WHERE u.id <> ALL (l.ids) ORDER BY u.n),
			creation_order_id = CASE WHEN l.until IS NULL THEN g.creation_order_id ELSE l.creation END,
			creation_until = CASE WHEN l.until IS NULL THEN g.creation_until ELSE now() + l.until END
		FROM locked l WHERE g.issuer_id = l.issuer_id AND g.card_id = l.card_id`,
		g.issuers, g.cards, g.ids, g.until)
	exec(b, `
		DELETE FROM card_guard g USING (SELECT DISTINCT * FROM unnest($1::text[], $2::text[])) AS t(issuer_id, card_id)
		WHERE g.issuer_id = t.issuer_id AND g.card_id = t.card_id
			AND g.order_ids = '{}' AND (g.creation_until IS NULL OR g.creation_until <= now())`,
		g.issuers, g.cards)
}

// queueHeldGuards queues the opposite, for orders that turned out not to have ended.
func queueHeldGuards(b *pgx.Batch, g guardRows) {
	if len(g.ids) == 0 {
		return
	}
	exec(b, `
		INSERT INTO card_guard AS g (issuer_id, card_id, order_ids)
		SELECT issuer_id, card_id, array_agg(id) FROM unnest($1::text[], $2::text[], $3::uuid[]) AS t(issuer_id, card_id, id)
		GROUP BY issuer_id, card_id ORDER BY issuer_id COLLATE "C", card_id COLLATE "C"
		ON CONFLICT (issuer_id, card_id) DO UPDATE SET order_ids =
			ARRAY(SELECT u.id FROM unnest(g.order_ids) WITH ORDINALITY AS u(id, n) WHERE u.id <> ALL (EXCLUDED.order_ids) ORDER BY u.n) || EXCLUDED.order_ids`,
		g.issuers, g.cards, g.ids)
}

// codeArray writes codes of ours, as attentions, as an array of Postgres: they need no
// quoting.
func codeArray[T ~string](codes []T) string {
	if len(codes) == 0 {
		return "{}"
	}
	list := make([]string, len(codes))
	for i, a := range codes {
		list[i] = string(a)
	}
	return "{" + strings.Join(list, ",") + "}"
}

// textArray writes any texts as an array of Postgres.
func textArray(list []string) string {
	if len(list) == 0 {
		return "{}"
	}
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = `"` + quoteInArray.Replace(s) + `"`
	}
	return "{" + strings.Join(quoted, ",") + "}"
}

var quoteInArray = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

func timeOrNull(t time.Time) pgtype.Timestamptz {
	return pgtype.Timestamptz{Time: t, Valid: !t.IsZero()}
}

// orFirst turns the zero time into one before all others, orLast into one after them.
func orFirst(t time.Time) pgtype.Timestamptz { return timeOr(t, pgtype.NegativeInfinity) }
func orLast(t time.Time) pgtype.Timestamptz  { return timeOr(t, pgtype.Infinity) }

func timeOr(t time.Time, zero pgtype.InfinityModifier) pgtype.Timestamptz {
	if t.IsZero() {
		return pgtype.Timestamptz{InfinityModifier: zero, Valid: true}
	}
	return pgtype.Timestamptz{Time: t, Valid: true}
}

// ShipmentUpdate is what D1 repeats of the carrier's word. The carrier's free text
// is not in it: it may name people, and rests sealed in the notification.
type ShipmentUpdate struct {
	TrackingNumber, Carrier, Status, TrackingURL string
}

func (u ShipmentUpdate) empty() bool { return u == ShipmentUpdate{} }

// shipmentKey names a shipment. The tracking number is empty while the carrier has given
// none.
type shipmentKey struct {
	orderKey
	trackingNumber string
}

// with returns what is known of a shipment after an update: what D1 leaves out of a later
// one stays as it was.
func (u ShipmentUpdate) with(later ShipmentUpdate) ShipmentUpdate {
	return ShipmentUpdate{
		TrackingNumber: later.TrackingNumber, Carrier: cmp.Or(later.Carrier, u.Carrier),
		Status: cmp.Or(later.Status, u.Status), TrackingURL: cmp.Or(later.TrackingURL, u.TrackingURL),
	}
}

// queueKnownShipments queues the reading of what is known of the shipments of orders.
func queueKnownShipments(b *pgx.Batch, orders keySet, known map[shipmentKey]ShipmentUpdate) {
	b.Queue(`
		SELECT h.issuer_id, h.order_id, h.tracking_number, coalesce(h.carrier, ''), coalesce(h.status, ''), coalesce(h.tracking_url, '')
		FROM `+orders.sql+` AS t(issuer_id, order_id) CROSS JOIN LATERAL (
			SELECT h.* FROM shipments h WHERE h.issuer_id = t.issuer_id AND h.order_id = t.order_id LIMIT 1000) h`, orders.args...).Query(func(rows pgx.Rows) error {
		return each(rows, func() error {
			var key shipmentKey
			var id pgtype.UUID
			var u ShipmentUpdate
			if err := rows.Scan(&key.issuer, &id, &u.TrackingNumber, &u.Carrier, &u.Status, &u.TrackingURL); err != nil {
				return err
			}
			key.id, key.trackingNumber = id.Bytes, u.TrackingNumber
			known[key] = u
			return nil
		})
	})
}

// queueShipments queues one row for each shipment.
func queueShipments(b *pgx.Batch, list map[shipmentKey]ShipmentUpdate) {
	n := len(list)
	if n == 0 {
		return
	}
	issuers, ids, numbers := make(texts, 0, n), make(uuids, 0, n), make(texts, 0, n)
	carriers, statuses, urls := make(texts, 0, n), make(texts, 0, n), make(texts, 0, n)
	for key, u := range list {
		issuers, ids, numbers = append(issuers, key.issuer), append(ids, pgID(&key.id)), append(numbers, key.trackingNumber)
		carriers, statuses, urls = append(carriers, u.Carrier), append(statuses, u.Status), append(urls, u.TrackingURL)
	}
	exec(b, `
		INSERT INTO shipments AS s (issuer_id, order_id, tracking_number, carrier, status, tracking_url)
		SELECT i, o, n, nullif(c, ''), nullif(st, ''), nullif(u, '')
		FROM unnest($1::text[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[]) AS t(i, o, n, c, st, u)
		ON CONFLICT (issuer_id, order_id, tracking_number) DO UPDATE SET
			carrier = coalesce(EXCLUDED.carrier, s.carrier), status = coalesce(EXCLUDED.status, s.status),
			tracking_url = coalesce(EXCLUDED.tracking_url, s.tracking_url),
			updated_at = now()`,
		issuers, ids, numbers, carriers, statuses, urls)
}
