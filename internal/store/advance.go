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
	operations    []string    // every PRODUCE operation seen for it
	submit        int64       // the message that brings it to D1, when this transaction has locked it
	checks        int         // how often D1 was asked since it last said something new
	heardAt       *time.Time  // when that was
	doubted       bool        // it did not change since the database's history did: D1 may have it
	halt          BatchAction // hold or cancel, when one came while D1 may have had it
	admitted      bool        // a person released it in spite of the program's rule
	changes       []change    // made in this transaction, to be logged after it
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

// lockOrders locks orders, in the one order that all transactions use, stores
// the operations seen for them, and reads where they stand. owners tells to
// which order each of the operations belongs: the first that it was seen for.
func lockOrders(ctx context.Context, tx pgx.Tx, keys []orderKey, seen []operation) (locked map[orderKey]*lockedOrder, owners map[string]orderKey, err error) {
	locked, owners = make(map[orderKey]*lockedOrder, len(keys)), make(map[string]orderKey, len(seen))
	if len(keys) == 0 {
		return locked, owners, nil
	}
	var b pgx.Batch
	exec(&b, steadyPlans)
	queueLocks(&b, keys, seen, locked)
	queueKnownOperations(&b, keys, locked, owners)
	queueHalts(&b, keys, locked)
	if err := send(ctx, tx, &b); err != nil {
		return nil, nil, fmt.Errorf("locking orders: %w", err)
	}
	return locked, owners, nil
}

// queueLocks queues the locking of orders and the storing of operations; locked is filled
// when the batch is run. Statements of one round trip have each a snapshot of their own:
// what is read after a lock includes what others wrote before it.
func queueLocks(b *pgx.Batch, keys []orderKey, seen []operation, locked map[orderKey]*lockedOrder) {
	issuers, ids := columns(distinctKeys(keys))
	b.Queue(`
		SELECT s.issuer_id, s.order_id, s.first_sent_at, clock_timestamp(), o.card_id, o.card_product_id, coalesce(o.terms #>> '{services,issuance}', ''),
			coalesce(s.updated_at < (SELECT seen_at FROM database_history WHERE only_row), false), s.checks, s.heard_at, `+stateColumns+`
		FROM unnest($1::text[], $2::uuid[]) AS t(issuer_id, order_id)
			JOIN order_state s ON s.issuer_id = t.issuer_id AND s.order_id = t.order_id
			JOIN orders o ON o.issuer_id = s.issuer_id AND o.id = s.order_id
		ORDER BY s.issuer_id, s.order_id
		FOR UPDATE OF s`,
		issuers, ids).Query(func(rows pgx.Rows) error {
		return each(rows, func() error {
			o := &lockedOrder{}
			var id pgtype.UUID
			fields := []any{&o.issuer, &id, &o.firstSentAt, &o.now, &o.cardID, &o.cardProductID, &o.issuance, &o.doubted, &o.checks, &o.heardAt}
			if err := rows.Scan(append(fields, stateFields(&o.state)...)...); err != nil {
				return err
			}
			o.id, o.stored = id.Bytes, o.state
			locked[o.orderKey] = o
			return nil
		})
	})
	queueOperations(b, seen)
}

// queueKnownOperations queues the reading of every PRODUCE operation seen for orders.
// The range and the order leave one index to read them by, whatever the statistics say.
func queueKnownOperations(b *pgx.Batch, keys []orderKey, locked map[orderKey]*lockedOrder, owners map[string]orderKey) {
	issuers, ids := columns(distinctKeys(keys))
	exec(b, sortOff)
	b.Queue(`
		SELECT t.issuer_id, t.order_id, p.operation_id
		FROM unnest($1::text[], $2::uuid[]) AS t(issuer_id, order_id) CROSS JOIN LATERAL (
			SELECT p.operation_id FROM operations p
			WHERE p.issuer_id = t.issuer_id AND p.order_id BETWEEN t.order_id AND t.order_id AND p.operation = 'PRODUCE'
			ORDER BY p.order_id LIMIT 100) p`,
		issuers, ids).Query(func(rows pgx.Rows) error {
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
func queueHalts(b *pgx.Batch, keys []orderKey, locked map[orderKey]*lockedOrder) {
	issuers, ids := columns(keys)
	b.Queue(`
		SELECT m.issuer_id, m.order_id, m.halt
		FROM unnest($1::text[], $2::uuid[]) AS t(issuer_id, order_id)
			JOIN outbox m ON m.issuer_id = t.issuer_id AND m.order_id = t.order_id AND m.kind = 'submit' AND m.halt IS NOT NULL`,
		issuers, ids).Query(func(rows pgx.Rows) error {
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
	clock := order.Clock{Now: o.now, Limits: a.store.limits(o)}
	next, changed := order.Advance(before, clock, evidence...)
	if o.halt != "" && before.ToBeSent() && !next.Waiting() && next.Rank > 0 {
		// D1 has the order that somebody wanted held or cancelled.
		next, changed = order.Advance(before, clock, append(evidence, order.Notice{Attention: order.AttentionStopTooLate})...)
	}
	if !changed {
		return
	}
	if cause.Kind == CauseReconciliation && next.OnlyTime(before) {
		cause = Cause{Kind: CauseTime} // D1 had nothing to say that was not known
	}
	o.state = next
	o.changes = append(o.changes, change{before, next, cause})
	a.touch(o)
	a.events = append(a.events, event{o.orderKey, cmp.Or(cause.Action, eventType(before, next)), next, before.Status, cause})
}

// limits are the times that an order is held to, nil for none.
func (s *Store) limits(o *lockedOrder) *order.Limits {
	if s.cfg.Limits == nil {
		return nil
	}
	return s.cfg.Limits(o.issuer, o.cardProductID)
}

// advanceOne advances one order and writes what follows.
func (s *Store) advanceOne(ctx context.Context, tx pgx.Tx, o *lockedOrder, cause Cause, evidence ...order.Evidence) error {
	w := advances{store: s}
	w.advance(o, cause, evidence...)
	var b pgx.Batch
	w.queue(&b)
	if err := send(ctx, tx, &b); err != nil {
		return err
	}
	o.stored = o.state
	return nil
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
	}
	return EventDetailsChanged
}

// queue queues every write that follows: states, events, the ends of submit messages
// that have become pointless, new ones, and the guards of cards.
func (a *advances) queue(b *pgx.Batch) {
	if len(a.orders) == 0 {
		return
	}
	var sent, unsent []*lockedOrder
	var released, held guardRows
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
			released.add(o, until)
		case !ended && before.Ended():
			held.add(o, nil)
		}
	}
	a.queueStates(b)
	a.queueEvents(b)
	queueRetired(b, sent)
	queueSubmits(b, unsent)
	queueReleasedGuards(b, released)
	queueHeldGuards(b, held)
}

// firstCheck is how soon D1 is asked about an order that it took without naming an
// operation; later checks come ever more rarely.
const firstCheck = 10 * time.Second

func (a *advances) queueStates(b *pgx.Batch) {
	n := len(a.orders)
	issuers, ids, versions := make(texts, n), make(uuids, n), make([]int, n)
	statuses, attention, operations := make(texts, n), make(texts, n), make(texts, n)
	ranks, steps, tops, ends := make([]int, n), make([]int, n), make([]int, n), make([]int, n)
	due, dueRanks, sites, siteRanks := make(texts, n), make([]int, n), make(texts, n), make([]int, n)
	ended, nameless, firsts := make([]int, n), make([]int, n), make([]pgtype.Timestamptz, n)
	holds, sinces, dues, lates := make(texts, n), make([]time.Time, n), make([]pgtype.Timestamptz, n), make([]bool, n)
	acknowledged, parcels := make(texts, n), make([]*string, n)
	for i, o := range a.orders {
		before, s := o.stored, o.state
		issuers[i], ids[i], versions[i] = o.issuer, pgID(&o.id), s.Version
		statuses[i], attention[i], operations[i] = string(s.Status), codeArray(s.Attention), s.OperationID
		ranks[i], steps[i], tops[i], ends[i] = s.Rank, s.StepRank, s.TopRank, s.EndRank
		due[i], dueRanks[i] = s.DueDate.Value, s.DueDate.Rank
		sites[i], siteRanks[i] = s.ProductionSite.Value, s.ProductionSite.Rank
		ended[i] = becomes(before.Ended(), s.Ended())
		nameless[i] = becomes(isNameless(before), isNameless(s))
		holds[i], sinces[i], dues[i], lates[i] = string(s.Hold), s.Since, timeOrNull(s.DueAt), s.Late
		acknowledged[i], parcels[i] = codeArray(s.Acknowledged), nil
		if !slices.Equal(before.Parcels, s.Parcels) {
			parcels[i] = textArray(s.Parcels)
		}
		if o.firstSentAt != nil {
			firsts[i] = pgtype.Timestamptz{Time: *o.firstSentAt, Valid: true}
		}
	}
	exec(b, `
		UPDATE order_state s SET version = t.version, status = t.status, rank = t.rank, step_rank = t.step_rank,
			top_rank = t.top_rank, end_rank = t.end_rank, operation_id = nullif(t.operation_id, ''), attention = t.attention::text[],
			due_date = nullif(t.due_date, ''), due_date_rank = t.due_date_rank,
			production_site = nullif(t.production_site, ''), production_site_rank = t.production_site_rank, updated_at = now(),
			ended_at = CASE t.ended WHEN 0 THEN s.ended_at WHEN 1 THEN now() END,
			next_check_at = CASE t.nameless WHEN 0 THEN s.next_check_at WHEN 1 THEN now() + $18::interval END,
			checks = CASE t.nameless WHEN 0 THEN s.checks ELSE 0 END,
			first_sent_at = t.first_sent_at, hold = nullif(t.hold, ''), status_since = t.since, due_at = t.due, late = t.late,
			acknowledged = t.acknowledged::text[], parcels = coalesce(t.parcels::text[], s.parcels)
		FROM unnest($1::text[], $2::uuid[], $3::integer[], $4::text[], $5::smallint[], $6::smallint[], $7::smallint[], $8::smallint[],
			$9::text[], $10::text[], $11::text[], $12::smallint[], $13::text[], $14::smallint[], $15::smallint[], $16::smallint[], $17::timestamptz[],
			$19::text[], $20::timestamptz[], $21::timestamptz[], $22::boolean[], $23::text[], $24::text[])
			AS t(issuer_id, order_id, version, status, rank, step_rank, top_rank, end_rank,
				operation_id, attention, due_date, due_date_rank, production_site, production_site_rank, ended, nameless, first_sent_at,
				hold, since, due, late, acknowledged, parcels)
		WHERE s.issuer_id = t.issuer_id AND s.order_id = t.order_id`,
		issuers, ids, versions, statuses, ranks, steps, tops, ends, operations, attention, due, dueRanks, sites, siteRanks,
		ended, nameless, firsts, firstCheck, holds, sinces, dues, lates, acknowledged, parcels)
}

// isNameless tells whether D1 took an order under an operation that nobody knows: it is
// asked about.
func isNameless(s order.State) bool { return s.OperationID == "" && s.Rank > 0 && !s.Ended() }

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
	statuses, previous, attention := make(texts, n), make(texts, n), make(texts, n)
	causes, causeIDs, actors, details := make(texts, n), make(texts, n), make(texts, n), make(texts, n)
	for i, e := range a.events {
		issuers[i], ids[i], seqs[i], kinds[i] = e.key.issuer, pgID(&e.key.id), e.state.Version, string(e.kind)
		statuses[i], previous[i], attention[i] = string(e.state.Status), string(e.previous), codeArray(e.state.Attention)
		causes[i], causeIDs[i], actors[i], details[i] = string(e.cause.Kind), e.cause.ID, e.cause.Actor, string(e.cause.Detail)
	}
	exec(b, `
		INSERT INTO order_events (issuer_id, order_id, seq, type, status, previous_status, attention, cause, cause_id, actor, detail)
		SELECT i, o, s, k, st, nullif(p, ''), a::text[], c, nullif(ci, ''), nullif(ac, ''), nullif(d, '')::jsonb
		FROM unnest($1::text[], $2::uuid[], $3::integer[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[])
			AS t(i, o, s, k, st, p, a, c, ci, ac, d)`,
		issuers, ids, seqs, kinds, statuses, previous, attention, causes, causeIDs, actors, details)
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

// codeArray writes attentions as an array of Postgres: they are codes of ours and need
// no quoting.
func codeArray(codes []order.Attention) string {
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
func textArray(list []string) *string {
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = `"` + quoteInArray.Replace(s) + `"`
	}
	array := "{" + strings.Join(quoted, ",") + "}"
	return &array
}

var quoteInArray = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

func timeOrNull(t time.Time) pgtype.Timestamptz {
	return pgtype.Timestamptz{Time: t, Valid: !t.IsZero()}
}

// ShipmentUpdate is what D1 repeats of the carrier's word. The carrier's free text
// is not in it: it may name people, and rests sealed in the notification.
type ShipmentUpdate struct {
	TrackingNumber, Carrier, Status, TrackingURL string
}

func (u ShipmentUpdate) empty() bool { return u == ShipmentUpdate{} }

// queueShipment queues one shipment row per tracking number. What D1 leaves
// out of a later update stays as it was.
func queueShipment(b *pgx.Batch, key orderKey, u ShipmentUpdate) {
	if u.empty() {
		return
	}
	exec(b, `
		INSERT INTO shipments AS s (issuer_id, order_id, tracking_number, carrier, status, tracking_url)
		VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (issuer_id, order_id, tracking_number) DO UPDATE SET
			carrier = coalesce(EXCLUDED.carrier, s.carrier), status = coalesce(EXCLUDED.status, s.status),
			tracking_url = coalesce(EXCLUDED.tracking_url, s.tracking_url),
			updated_at = now()`,
		key.issuer, key.id, u.TrackingNumber, optional(u.Carrier), optional(u.Status), optional(u.TrackingURL))
}
