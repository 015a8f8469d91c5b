package store

import (
	"bytes"
	"context"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"cardorder/internal/order"
)

// receiving is one transaction that brings notifications to their orders: it takes two
// round trips, however many they are, and a third one where an order's operation is new.
// Those that have just come get a row each, written once with what became of them; stored
// ones have theirs.
//
// Locks: orders, then rows of notifications that match none by id, then operations and
// new rows of theirs by digest, messages and cards. Rows of notifications that have an
// order are written by who holds the order.
type receiving struct {
	store  *Store
	issuer string
	list   []*arrival // no two have the same content
	stored bool       // they have rows already
	// replay applies stored ones whatever became of them before.
	replay bool
	// broken tells that the one in the list could not be applied: its order is marked.
	broken bool

	// What the first trip learns.
	locked    map[orderKey]*lockedOrder
	owners    map[string]orderKey // of PRODUCE operations
	rows      map[int64]storedRow // stored ones that are still to be applied, locked
	shipments map[shipmentKey]ShipmentUpdate
	unapplied map[orderKey][]int64 // other notifications that could not be applied

	// What follows.
	found   []int64 // stored ones that were repeated, and have an order now
	shipped map[shipmentKey]ShipmentUpdate
	seen    []*arrival // with an operation that is new to its order
}

// storedRow is what became of a stored notification before.
type storedRow struct {
	outcome Outcome
	order   uuid.UUID // that it was matched to
}

func (r *receiving) run(ctx context.Context) error {
	if len(r.list) == 0 {
		return nil
	}
	if err := r.store.inTrips(ctx, r.ask, r.askOperations, r.answer); err != nil {
		return err
	}
	r.store.logChanges(ctx, r.locked)
	return nil
}

// patience is for how long an order that somebody else has locked is waited for, while
// D1 waits for the answer.
const patience = `SELECT set_config('lock_timeout', '250ms', true)`

// matched is the set of orders that were found. Statements of one round trip can hand
// nothing to each other but by a setting of the transaction.
func (r *receiving) matched() keySet {
	return keySet{`(SELECT DISTINCT $1::text, o FROM unnest(` + matchedIDs + `) AS o WHERE o IS NOT NULL)`, []any{r.issuer}}
}

const matchedIDs = `current_setting('cardorder.matched', true)::uuid[]`

// ask queues what has to be known before anything is decided.
func (r *receiving) ask(b *pgx.Batch) {
	r.locked, r.owners, r.rows = make(map[orderKey]*lockedOrder, len(r.list)), make(map[string]orderKey, len(r.list)), make(map[int64]storedRow)
	r.shipments, r.unapplied = nil, nil
	exec(b, patience)
	exec(b, steadyPlans)
	r.queueMatch(b)
	orders := r.matched()
	orders.queueLocks(b, r.locked)
	orders.queueHalts(b, r.locked)
	if slices.ContainsFunc(r.list, func(n *arrival) bool { return !n.Shipment.empty() }) {
		r.shipments = make(map[shipmentKey]ShipmentUpdate)
		queueKnownShipments(b, orders, r.shipments)
	}
	r.queueSame(b)
	if r.stored {
		r.queueRows(b)
		r.queueUnapplied(b, orders)
		return
	}
	next := 0
	b.Queue(`SELECT nextval('notifications_id_seq') FROM generate_series(1, $1::integer)`, len(r.list)).Query(func(rows pgx.Rows) error {
		return each(rows, func() error {
			n := r.list[next]
			next++
			return rows.Scan(&n.id)
		})
	})
}

// askOperations queues the reading of what operations D1 has for orders, where that
// matters: D1 speaks of another one than the order's own, or there is more than one. As a
// rule it queues nothing.
func (r *receiving) askOperations(b *pgx.Batch) {
	var keys []orderKey
	for _, n := range r.list {
		o := r.locked[n.order]
		if o == nil {
			continue
		}
		own := o.state.OperationID
		if own == "" || n.Operation == OperationProduce && n.OperationID != own ||
			slices.Contains(o.state.Attention, order.AttentionSecondCard) || slices.Contains(o.state.Acknowledged, order.AttentionSecondCard) {
			keys = append(keys, n.order)
			continue
		}
		if len(o.operations) == 0 {
			o.operations = append(o.operations, own)
			r.owners[own] = n.order
		}
	}
	if len(keys) > 0 {
		for _, key := range keys {
			r.locked[key].operations = nil // they are read
		}
		keysGiven(keys).queueKnownOperations(b, r.locked, r.owners)
	}
}

// match finds the order of each notification, and leaves their ids to the statements
// after it.
//
//	PRODUCE              the operation; else issuerRequestId, and if that is there but
//	                     unknown, none; else the card, if exactly one order of it was sent
//	                     and has no operation yet
//	UPDATE_ORDER         the operation; else issuerRequestId: the change's, or that of the
//	                     order, if exactly one change of it was sent or nobody waits for
//	                     any; else the card, by the same rules
//	STANDALONE_TRACKING  the operation; else the tracking number; else the card's last
//	                     order that was shipped, else its last that D1 has: of a card that
//	                     others make and send, the tracking hub is the first to say so
const match = `
	WITH n AS (
		SELECT * FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::boolean[], $8::text[], $13::uuid[]) WITH ORDINALITY
			AS n(operation, operation_id, request_id, card_id, start_time, not_by_card, tracking_number, change_id, i)
	), by_operation AS MATERIALIZED (
		SELECT n.*, CASE WHEN n.operation_id <> '' THEN (SELECT p.order_id FROM operations p
			WHERE p.issuer_id = $1 AND p.operation_id = n.operation_id AND p.operation = n.operation) END AS owner FROM n
	), named AS MATERIALIZED (
		SELECT n.*, CASE
			WHEN n.owner IS NOT NULL THEN NULL
			WHEN n.operation = 'PRODUCE' AND n.request_id <> '' THEN
				(SELECT o.id FROM orders o WHERE o.issuer_id = $1 AND o.issuer_request_id = n.request_id)
			WHEN n.operation = 'UPDATE_ORDER' AND n.request_id <> '' THEN coalesce(
				(SELECT c.order_id FROM order_changes c WHERE c.issuer_id = $1 AND c.id = n.change_id),
				(SELECT (array_agg(c.order_id))[1] FROM orders o JOIN order_changes c ON c.issuer_id = o.issuer_id AND c.order_id = o.id
				WHERE o.issuer_id = $1 AND o.issuer_request_id = n.request_id AND ` + changeAtD1 + ` HAVING count(*) = 1),
				(SELECT o.id FROM orders o JOIN order_state s ON s.issuer_id = o.issuer_id AND s.order_id = o.id
				WHERE o.issuer_id = $1 AND o.issuer_request_id = n.request_id AND s.rank > 0 AND NOT EXISTS (SELECT FROM order_changes c
					WHERE c.issuer_id = o.issuer_id AND c.order_id = o.id AND ` + changeWaits + `)))
			WHEN n.operation = 'STANDALONE_TRACKING' AND n.tracking_number <> '' THEN
				(SELECT h.order_id FROM shipments h JOIN order_state s ON s.issuer_id = h.issuer_id AND s.order_id = h.order_id
				WHERE h.issuer_id = $1 AND h.tracking_number = n.tracking_number AND s.status NOT IN ('ACCEPTED', 'HELD')
				ORDER BY h.order_id DESC LIMIT 1)
			END AS by_name
		FROM by_operation n
	), m AS MATERIALIZED (
		SELECT n.i, n.owner, n.by_name, CASE
			WHEN n.owner IS NOT NULL OR n.by_name IS NOT NULL OR n.card_id = '' THEN NULL
			WHEN n.operation = 'PRODUCE' AND n.request_id = '' AND NOT n.not_by_card THEN
				(SELECT (array_agg(o.id))[1] FROM orders o
					JOIN order_state s ON s.issuer_id = o.issuer_id AND s.order_id = o.id
					LEFT JOIN outbox m ON m.issuer_id = o.issuer_id AND m.order_id = o.id AND m.kind = 'submit'
				WHERE o.issuer_id = $1 AND o.card_id = n.card_id AND s.operation_id IS NULL AND s.status <> 'REJECTED'
					AND n.start_time >= coalesce(s.first_sent_at, m.first_sent_at) - $9::interval
				HAVING count(*) = 1)
			WHEN n.operation = 'UPDATE_ORDER' AND n.request_id = '' AND NOT n.not_by_card THEN
				coalesce((SELECT (array_agg(c.order_id))[1] FROM orders o JOIN order_changes c ON c.issuer_id = o.issuer_id AND c.order_id = o.id
				WHERE o.issuer_id = $1 AND o.card_id = n.card_id AND ` + changeAtD1 + ` HAVING count(*) = 1),
				(SELECT (array_agg(DISTINCT o.id))[1] FROM orders o JOIN order_state s ON s.issuer_id = o.issuer_id AND s.order_id = o.id
					JOIN order_changes c ON c.issuer_id = o.issuer_id AND c.order_id = o.id
				WHERE o.issuer_id = $1 AND o.card_id = n.card_id AND s.rank > 0
				HAVING count(DISTINCT o.id) = 1 AND NOT bool_or(` + changeWaits + `)))
			WHEN n.operation = 'STANDALONE_TRACKING' THEN
				(SELECT o.id FROM orders o JOIN order_state s ON s.issuer_id = o.issuer_id AND s.order_id = o.id
				WHERE o.issuer_id = $1 AND o.card_id = n.card_id AND s.rank > 0
				ORDER BY s.status IN ('SHIPPED', 'DELIVERED', 'RETURNED') DESC, o.id DESC LIMIT 1)
			END AS by_card
		FROM named n
	)
	SELECT set_config('cardorder.matched', coalesce(array_agg(coalesce(owner, by_name, by_card) ORDER BY i)::text, '{}'), true),
		array_agg(coalesce(owner, by_name, by_card) ORDER BY i),
		array_agg(CASE WHEN owner IS NOT NULL THEN $10::integer WHEN by_name IS NOT NULL THEN $11 WHEN by_card IS NOT NULL THEN $12 ELSE 0 END ORDER BY i)
	FROM m`

func (r *receiving) queueMatch(b *pgx.Batch) {
	n := len(r.list)
	kinds, operations, requests, cards, numbers := make(texts, n), make(texts, n), make(texts, n), make(texts, n), make(texts, n)
	starts, notByCard, changes := make([]time.Time, n), make([]bool, n), make(uuids, n)
	for i, a := range r.list {
		kinds[i], operations[i], requests[i], cards[i], numbers[i] = a.Operation, a.OperationID, a.IssuerRequestID, a.CardID, a.Shipment.TrackingNumber
		starts[i], notByCard[i] = a.StartTime, a.NotByCard
		if a.Operation == OperationChange {
			if id, err := uuid.Parse(a.IssuerRequestID); err == nil {
				changes[i] = pgID(&id)
			}
		}
	}
	b.Queue(match, r.issuer, kinds, operations, requests, cards, starts, notByCard, numbers, order.ClockSkew,
		byOperation, byRequest, byCard, changes).QueryRow(func(row pgx.Row) error {
		var setting string
		var ids []pgtype.UUID
		var hows []matchedBy
		if err := row.Scan(&setting, &ids, &hows); err != nil {
			return err
		}
		for i, a := range r.list {
			// A repeated transaction matches anew.
			a.order, a.how, a.same, a.waits = orderKey{}, hows[i], 0, false
			if ids[i].Valid {
				a.order = orderKey{r.issuer, ids[i].Bytes}
			}
		}
		return nil
	})
}

// queueSame queues the search for rows with the same content: of the order, whose lock
// keeps others from writing one meanwhile, and of no order.
func (r *receiving) queueSame(b *pgx.Batch) {
	digests := make([][]byte, len(r.list))
	// LIMIT keeps the planner from beginning with the notifications, of which it may
	// believe that there are few.
	if !r.stored {
		// By content, so that two calls with the same never wait for each other in a circle.
		sorted := slices.SortedFunc(slices.Values(r.list), byDigest)
		for i, n := range sorted {
			digests[i] = n.digest
		}
		b.Queue(`
			SELECT t.i, n.id FROM unnest($2::bytea[]) WITH ORDINALITY AS t(digest, i) CROSS JOIN LATERAL (
				SELECT n.id FROM notifications n WHERE n.issuer_id = $1 AND n.order_id IS NULL AND n.digest = t.digest LIMIT 1 FOR UPDATE) n`,
			r.issuer, slices.Clone(digests)).Query(func(rows pgx.Rows) error {
			return each(rows, func() error {
				var i int
				var id int64
				if err := rows.Scan(&i, &id); err != nil {
					return err
				}
				sorted[i-1].same, sorted[i-1].waits = id, true
				return nil
			})
		})
	}
	for i, n := range r.list {
		digests[i] = n.digest
	}
	b.Queue(`
		SELECT t.i, n.id FROM unnest($2::bytea[], `+matchedIDs+`) WITH ORDINALITY AS t(digest, order_id, i) CROSS JOIN LATERAL (
			SELECT n.id FROM notifications n WHERE n.issuer_id = $1 AND n.order_id = t.order_id AND n.digest = t.digest LIMIT 1) n`,
		r.issuer, digests).Query(func(rows pgx.Rows) error {
		return each(rows, func() error {
			var i int
			var id int64
			if err := rows.Scan(&i, &id); err != nil {
				return err
			}
			if n := r.list[i-1]; id != n.id || !r.stored {
				n.same, n.waits = id, false
			}
			return nil
		})
	})
}

func byDigest(x, y *arrival) int { return bytes.Compare(x.digest, y.digest) }

// queueRows queues the locking of stored ones. Those that another replica has, or that
// are done, are left alone.
func (r *receiving) queueRows(b *pgx.Batch) {
	ids := make([]int64, len(r.list))
	for i, n := range r.list {
		ids[i] = n.id
	}
	sql := `SELECT id, outcome, order_id FROM notifications WHERE id = ANY ($1) AND outcome IN ('parked', 'unapplied') ORDER BY id FOR UPDATE SKIP LOCKED`
	if r.replay {
		sql = `SELECT id, outcome, order_id FROM notifications WHERE id = ANY ($1) ORDER BY id FOR UPDATE`
	}
	b.Queue(sql, ids).Query(func(rows pgx.Rows) error {
		return each(rows, func() error {
			var id int64
			var row storedRow
			var order pgtype.UUID
			err := rows.Scan(&id, &row.outcome, &order)
			row.order = order.Bytes
			r.rows[id] = row
			return err
		})
	})
}

// queueUnapplied queues the search for what else could not be applied: as long as there
// is any, an order stays marked.
func (r *receiving) queueUnapplied(b *pgx.Batch, orders keySet) {
	r.unapplied = make(map[orderKey][]int64)
	b.Queue(`
		SELECT t.order_id, n.id FROM `+orders.sql+` AS t(issuer_id, order_id) CROSS JOIN LATERAL (
			SELECT n.id FROM notifications n WHERE n.issuer_id = t.issuer_id AND n.order_id = t.order_id AND n.outcome = 'unapplied' LIMIT 1000) n`, orders.args...).Query(func(rows pgx.Rows) error {
		return each(rows, func() error {
			var order pgtype.UUID
			var id int64
			if err := rows.Scan(&order, &id); err != nil {
				return err
			}
			key := orderKey{r.issuer, order.Bytes}
			r.unapplied[key] = append(r.unapplied[key], id)
			return nil
		})
	})
}

// answer decides what becomes of each notification, and queues all that is written.
func (r *receiving) answer(b *pgx.Batch) {
	r.found, r.seen, r.shipped = nil, nil, make(map[shipmentKey]ShipmentUpdate)
	w := &advances{store: r.store, orders: make([]*lockedOrder, 0, len(r.locked)), events: make([]event, 0, len(r.list))}
	for _, n := range r.list {
		n.outcome = r.decide(w, n)
		if r.rows[n.id].outcome == OutcomeApplied && n.outcome != OutcomeUnapplied {
			n.outcome = OutcomeApplied // its order has heard it, whatever is found for it now
		}
	}
	if r.stored {
		r.queueSettled(b)
	} else {
		r.queueNew(b)
	}
	r.queueSeen(b)
	queueShipments(b, r.shipped)
	w.queue(b)
}

func (r *receiving) decide(w *advances, n *arrival) Outcome {
	was, waits := r.rows[n.id]
	o := r.locked[n.order]
	switch {
	case r.stored && !waits:
		return "" // another replica has it, or it is done
	case r.stored && n.unread:
		return was.outcome // one that can read it decides
	case !r.stored && n.same != 0:
		return OutcomeRepeated
	case was.outcome == OutcomeApplied && (o == nil || o.id != was.order):
		return OutcomeApplied // it is not told to another one
	case !n.ofOrders(), o == nil && n.ofOthers():
		return OutcomeIgnored
	case o == nil:
		return OutcomeParked
	case n.how == byCard && n.Operation == OperationProduce && o.state.OperationID != "" && o.state.OperationID != n.OperationID:
		return OutcomeParked // the order has got its operation since it was matched: this one is another's
	case n.same != 0:
		return OutcomeRepeated // its order has the same content already
	}
	return r.apply(w, o, n)
}

// apply advances an order by a notification.
func (r *receiving) apply(w *advances, o *lockedOrder, n *arrival) Outcome {
	if r.broken && r.rows[n.id].outcome == OutcomeApplied {
		return OutcomeUnapplied // its order has heard it before: there is nothing to mark
	}
	if r.broken {
		w.advance(o, n.cause(), order.Notice{Attention: order.AttentionUnapplied})
		return OutcomeUnapplied
	}
	if n.Operation == OperationChange && !w.changeReported(o, n.cause(), n.Notification) && n.how != byOperation {
		return OutcomeParked // the change is not known to be at D1 yet
	}
	if n.OperationID != "" && n.how != byOperation {
		if owner, known := r.owners[n.OperationID]; known && owner != o.orderKey && n.Operation == OperationProduce {
			// One operation, two orders: this one is not its first.
			w.advance(o, n.cause(), order.Notice{Attention: order.AttentionForeignOperation})
			return OutcomeUnapplied
		}
		r.seen = append(r.seen, n)
		if n.Operation == OperationProduce {
			r.owners[n.OperationID] = o.orderKey
			if !slices.Contains(o.operations, n.OperationID) {
				o.operations = append(o.operations, n.OperationID)
			}
		}
	}
	var evidence []order.Evidence
	if n.Evidence != nil {
		evidence = append(evidence, n.Evidence)
	}
	if r.ships(o, n) {
		evidence = append(evidence, order.News{})
	}
	if slices.Contains(o.state.Attention, order.AttentionUnapplied) && r.lastUnapplied(o, n) {
		evidence = append(evidence, order.Cured{Attention: order.AttentionUnapplied})
	}
	w.advance(o, n.cause(), evidence...)
	return OutcomeApplied
}

// ships tells whether a notification says something new of a shipment, which is then
// written.
func (r *receiving) ships(o *lockedOrder, n *arrival) bool {
	if n.Shipment.empty() {
		return false
	}
	key := shipmentKey{o.orderKey, n.Shipment.TrackingNumber}
	known, there := r.shipments[key]
	next := known.with(n.Shipment)
	if there && (next == known || r.rows[n.id].outcome == OutcomeApplied) {
		return false // what came later than a notification that is replayed stands
	}
	r.shipments[key], r.shipped[key] = next, next
	return true
}

// lastUnapplied tells whether nothing that could not be applied to the order is left when
// n is.
func (r *receiving) lastUnapplied(o *lockedOrder, n *arrival) bool {
	if !r.stored {
		return false // it is another one that could not be applied
	}
	left := slices.DeleteFunc(r.unapplied[o.orderKey], func(id int64) bool { return id == n.id })
	r.unapplied[o.orderKey] = left
	return len(left) == 0
}

// queueSeen queues the operations that were seen for an order for the first time. One
// that another transaction has stored meanwhile makes this one begin anew.
func (r *receiving) queueSeen(b *pgx.Batch) {
	seen := make(map[string]bool)
	list := slices.DeleteFunc(r.seen, func(n *arrival) bool {
		again := seen[n.OperationID]
		seen[n.OperationID] = true
		return again
	})
	if len(list) == 0 {
		return
	}
	// Sorted, so that two transactions never wait for each other's rows in a circle.
	slices.SortFunc(list, func(x, y *arrival) int { return bytes.Compare([]byte(x.OperationID), []byte(y.OperationID)) })
	n := len(list)
	ids, orders, kinds := make(texts, n), make(uuids, n), make(texts, n)
	for i, n := range list {
		ids[i], orders[i], kinds[i] = n.OperationID, pgID(&n.order.id), n.Operation
	}
	exec(b, `
		INSERT INTO operations (issuer_id, operation_id, order_id, operation, source)
		SELECT $1, t.operation_id, t.order_id, t.operation, 'notification' FROM unnest($2::text[], $3::uuid[], $4::text[]) AS t(operation_id, order_id, operation)
		WHERE NOT EXISTS (SELECT FROM operations p WHERE p.issuer_id = $1 AND p.operation_id = t.operation_id
			AND (p.order_id = t.order_id OR p.operation <> t.operation))`,
		r.issuer, ids, orders, kinds)
}

// notificationColumns are written of a new row.
const (
	notificationColumns = `(issuer_id, digest, body, operation, operation_id, card_id, issuer_request_id,
		order_id, outcome, correlation_id, times_seen, next_try_at, id) OVERRIDING SYSTEM VALUE`
	notificationValues = `
		SELECT $1, d, b, nullif(k, ''), nullif(op, ''), nullif(ca, ''), nullif(rq, ''), o, oc, nullif(co, ''), ts,
			CASE WHEN oc IN ('parked', 'unapplied') THEN now() + interval '2 s' END, coalesce(id, nextval('notifications_id_seq'))
		FROM unnest($2::bytea[], $3::bytea[], $4::text[], $5::text[], $6::text[], $7::text[], $8::uuid[], $9::text[], $10::text[], $11::integer[], $12::bigint[])
			AS t(d, b, k, op, ca, rq, o, oc, co, ts, id)`
)

// notificationRows are new rows of an issuer.
type notificationRows struct {
	issuer                                                     string
	digests, bodies                                            [][]byte
	kinds, operations, cards, requests, outcomes, correlations texts
	orders                                                     uuids
	times                                                      []int
}

func newNotificationRows(issuer string, n int) *notificationRows {
	return &notificationRows{
		issuer: issuer, digests: make([][]byte, 0, n), bodies: make([][]byte, 0, n),
		kinds: make(texts, 0, n), operations: make(texts, 0, n), cards: make(texts, 0, n), requests: make(texts, 0, n),
		outcomes: make(texts, 0, n), correlations: make(texts, 0, n), orders: make(uuids, 0, n), times: make([]int, 0, n),
	}
}

func (c *notificationRows) add(n *arrival) {
	c.digests, c.bodies, c.times = append(c.digests, n.digest), append(c.bodies, n.body), append(c.times, n.times)
	c.kinds, c.operations, c.cards = append(c.kinds, n.Operation), append(c.operations, n.OperationID), append(c.cards, n.CardID)
	c.requests, c.outcomes = append(c.requests, n.IssuerRequestID), append(c.outcomes, string(n.outcome))
	c.correlations = append(c.correlations, n.CorrelationID)
	id := pgtype.UUID{}
	if n.outcome == OutcomeApplied || n.outcome == OutcomeUnapplied {
		id = pgID(&n.order.id)
	}
	c.orders = append(c.orders, id)
}

// args are the parameters of notificationValues; without ids the database gives them.
func (c *notificationRows) args(ids []int64) []any {
	return []any{
		c.issuer, c.digests, c.bodies, c.kinds, c.operations, c.cards, c.requests, c.orders, c.outcomes, c.correlations, c.times, ids,
	}
}

// queueNew queues the rows of notifications that have just come. Repeats are counted.
func (r *receiving) queueNew(b *pgx.Batch) {
	var fresh []*arrival
	var repeats []int64
	var times []int
	var found []bool
	for _, n := range r.list {
		if n.outcome != OutcomeRepeated {
			fresh = append(fresh, n)
			continue
		}
		repeats, times, found = append(repeats, n.same), append(times, n.times), append(found, n.waits && n.order.id != uuid.Nil)
		if found[len(found)-1] {
			r.found = append(r.found, n.same)
		}
	}
	if len(repeats) > 0 { // what had no order for too long has one after all
		exec(b, `
			UPDATE notifications n SET times_seen = n.times_seen + t.times, last_seen_at = now(),
				outcome = CASE WHEN t.found AND n.outcome = 'foreign' THEN 'parked' ELSE n.outcome END,
				next_try_at = CASE WHEN t.found AND n.outcome = 'foreign' THEN now() ELSE n.next_try_at END
			FROM unnest($1::bigint[], $2::integer[], $3::boolean[]) AS t(id, times, found) WHERE n.id = t.id`, repeats, times, found)
	}
	if len(fresh) == 0 {
		return
	}
	// Those of no order are in an index that others write to at the same time: in one
	// order, so that nobody waits in a circle.
	slices.SortFunc(fresh, byDigest)
	rows := newNotificationRows(r.issuer, len(fresh))
	ids := make([]int64, len(fresh))
	for i, n := range fresh {
		rows.add(n)
		ids[i] = n.id
	}
	exec(b, `INSERT INTO notifications `+notificationColumns+notificationValues, rows.args(ids)...)
}

// queueSettled queues what became of stored ones. What waits is tried again, ever less
// often, until it has waited for so long that it is somebody else's. One whose content
// its order has already is merged into that row.
func (r *receiving) queueSettled(b *pgx.Batch) {
	var ids, merged, into []int64
	var outcomes texts
	var orders uuids
	for _, n := range r.list {
		switch {
		case n.outcome == "" || r.rows[n.id].outcome == OutcomeApplied:
		case n.outcome == OutcomeRepeated:
			merged, into = append(merged, n.id), append(into, n.same)
		default:
			id := pgtype.UUID{}
			if (n.outcome == OutcomeApplied || n.outcome == OutcomeUnapplied) && !n.unread {
				id = pgID(&n.order.id)
			}
			ids, outcomes, orders = append(ids, n.id), append(outcomes, string(n.outcome)), append(orders, id)
		}
	}
	if len(ids) > 0 {
		byID := make(map[int64]*arrival, len(r.list))
		for _, n := range r.list {
			byID[n.id] = n
		}
		b.Queue(`
			UPDATE notifications n SET tries = n.tries + 1, order_id = coalesce(t.order_id, n.order_id),
				outcome = CASE WHEN t.outcome = 'parked' AND n.created_at < now() - $4::interval THEN 'foreign' ELSE t.outcome END,
				next_try_at = CASE WHEN t.outcome = 'unapplied' OR t.outcome = 'parked' AND n.created_at >= now() - $4::interval
					THEN now() + least(interval '1 h', interval '2 s' * (2 ^ least(n.tries, 12))) END
			FROM unnest($1::bigint[], $2::text[], $3::uuid[]) AS t(id, outcome, order_id) WHERE n.id = t.id
			RETURNING n.id, n.outcome`, ids, outcomes, orders, r.store.foreignAfter(r.issuer)).Query(func(rows pgx.Rows) error {
			return each(rows, func() error {
				var id int64
				var outcome Outcome
				err := rows.Scan(&id, &outcome)
				byID[id].outcome = outcome
				return err
			})
		})
	}
	if len(merged) > 0 {
		exec(b, `
			WITH gone AS (
				DELETE FROM notifications n USING unnest($1::bigint[], $2::bigint[]) AS t(id, into_id) WHERE n.id = t.id
				RETURNING t.into_id, n.times_seen, n.last_seen_at
			)
			UPDATE notifications n SET times_seen = n.times_seen + g.times_seen, last_seen_at = greatest(n.last_seen_at, g.last_seen_at)
			FROM gone g WHERE n.id = g.into_id`, merged, into)
	}
}

// defaultForeignAfter is how long a notification may wait for its order, unless the
// issuer's configuration says otherwise.
const defaultForeignAfter = 30 * 24 * time.Hour

func (s *Store) foreignAfter(issuer string) time.Duration {
	if s.cfg.ForeignAfter != nil {
		if after := s.cfg.ForeignAfter(issuer); after > 0 {
			return after
		}
	}
	return defaultForeignAfter
}
