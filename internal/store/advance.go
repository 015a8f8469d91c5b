package store

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"cardorder/internal/order"
)

// lockedOrder is an order whose state this transaction has locked.
type lockedOrder struct {
	orderKey
	state         order.State
	cardID        string
	cardProductID string
	issuance      order.Issuance
	operations    []string // every PRODUCE operation seen for it
	doubted       bool     // it did not change since the database's history did: what was sent in the other one is unknown
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
			if slices.ContainsFunc(c.after.Attention, func(a order.Attention) bool { return !slices.Contains(c.before.Attention, a) }) {
				level = slog.LevelWarn // somebody should look
			}
			s.cfg.Log.Log(ctx, level, "order changed", "issuerId", o.issuer, "orderId", o.id, "version", c.after.Version,
				"from", c.before.Status, "status", c.after.Status, "attention", attentions(c.after),
				"operationId", c.after.OperationID, "cause", c.cause.Kind, "causeId", c.cause.ID)
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
//
// The three statements are sent in one round trip but each has a snapshot of
// its own: what is read after the lock includes what others wrote before it.
func lockOrders(ctx context.Context, tx pgx.Tx, keys []orderKey, seen []operation) (locked map[orderKey]*lockedOrder, owners map[string]orderKey, err error) {
	locked, owners = make(map[orderKey]*lockedOrder, len(keys)), make(map[string]orderKey, len(seen))
	if len(keys) == 0 {
		return locked, owners, nil
	}
	var b pgx.Batch
	issuers, ids := columns(keys)
	b.Queue(`
		SELECT s.issuer_id, s.order_id, o.card_id, o.card_product_id, o.terms -> 'services' ->> 'issuance',
			coalesce(s.updated_at < (SELECT seen_at FROM database_history), false), `+stateColumns+`
		FROM order_state s JOIN orders o ON o.issuer_id = s.issuer_id AND o.id = s.order_id
		WHERE (s.issuer_id, s.order_id) IN (SELECT * FROM unnest($1::text[], $2::uuid[]))
		ORDER BY s.issuer_id, s.order_id
		FOR UPDATE OF s`,
		issuers, ids).Query(func(rows pgx.Rows) error {
		return each(rows, func() error {
			o := &lockedOrder{}
			fields := []any{&o.issuer, &o.id, &o.cardID, &o.cardProductID, &o.issuance, &o.doubted}
			if err := rows.Scan(append(fields, stateFields(&o.state)...)...); err != nil {
				return err
			}
			locked[o.orderKey] = o
			return nil
		})
	})
	queueOperations(&b, seen)
	b.Queue(`
		SELECT p.issuer_id, p.order_id, p.operation_id FROM operations p
		WHERE (p.issuer_id, p.order_id) IN (SELECT * FROM unnest($1::text[], $2::uuid[])) AND p.operation = 'PRODUCE'`,
		issuers, ids).Query(func(rows pgx.Rows) error {
		return each(rows, func() error {
			var key orderKey
			var id string
			if err := rows.Scan(&key.issuer, &key.id, &id); err != nil {
				return err
			}
			owners[id] = key
			if o := locked[key]; o != nil {
				o.operations = append(o.operations, id)
			}
			return nil
		})
	})
	if err := send(ctx, tx, &b); err != nil {
		return nil, nil, fmt.Errorf("locking orders: %w", err)
	}
	return locked, owners, nil
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
	issuers, ids, orders, sources := make([]string, n), make([]string, n), make([]uuid.UUID, n), make([]string, n)
	for i, op := range seen {
		issuers[i], ids[i], orders[i], sources[i] = op.key.issuer, op.id, op.key.id, op.source
	}
	exec(b, `
		INSERT INTO operations (issuer_id, operation_id, order_id, operation, source)
		SELECT i, p, o, 'PRODUCE', s FROM unnest($1::text[], $2::text[], $3::uuid[], $4::text[]) AS t(i, p, o, s)
		ON CONFLICT DO NOTHING`, issuers, ids, orders, sources)
}

func columns(keys []orderKey) (issuers []string, ids []uuid.UUID) {
	for _, k := range keys {
		issuers, ids = append(issuers, k.issuer), append(ids, k.id)
	}
	return issuers, ids
}

// queueAdvance advances a locked order by evidence and queues every write that
// follows from it: state, event, guard, and the end of a submit message that
// has become pointless.
func (s *Store) queueAdvance(b *pgx.Batch, o *lockedOrder, cause Cause, evidence ...order.Evidence) {
	before := o.state
	next, changed := order.Advance(before, append(evidence, order.Operations{IDs: o.operations})...)
	if !changed {
		return
	}
	o.state = next
	o.changes = append(o.changes, change{before, next, cause})
	var ended *bool
	if next.Ended() != before.Ended() {
		now := next.Ended()
		ended = &now
	}
	exec(b, `
		UPDATE order_state SET version = $3, status = $4, rank = $5, step_rank = $6, top_rank = $7, end_rank = $8,
			operation_id = $9, attention = $10, due_date = $11, due_date_rank = $12,
			production_site = $13, production_site_rank = $14, updated_at = now(),
			ended_at = CASE WHEN $15::boolean IS NULL THEN ended_at WHEN $15 THEN now() END
		WHERE issuer_id = $1 AND order_id = $2`,
		o.issuer, o.id, next.Version, next.Status, next.Rank, next.StepRank, next.TopRank, next.EndRank,
		optional(next.OperationID), attentions(next), optional(next.DueDate.Value), next.DueDate.Rank,
		optional(next.ProductionSite.Value), next.ProductionSite.Rank, ended)
	queueEvent(b, o.orderKey, event{
		seq: next.Version, kind: cmp.Or(cause.Action, eventType(before, next)), state: next, previous: before.Status, Cause: cause,
	})
	switch sent, sends := before.ToBeSent(), next.ToBeSent(); {
	case sent && !sends:
		exec(b, `DELETE FROM outbox WHERE issuer_id = $1 AND order_id = $2 AND kind = 'submit'`, o.issuer, o.id)
	case sends && !sent:
		// D1 has the order already when it told of it meanwhile, and may have it when the
		// database has forgotten: it is then asked first.
		exec(b, `
			INSERT INTO outbox (lane, kind, class, issuer_id, order_id, card_id, first_sent_at, maybe_sent_at)
			SELECT $3, 'submit', CASE WHEN o.batch_id IS NULL OR o.urgent THEN $4::smallint ELSE $5 END, o.issuer_id, o.id, o.card_id,
				coalesce(s.first_sent_at, p.since, CASE WHEN $7 THEN o.created_at END), CASE WHEN $6 OR $7 OR p.since IS NOT NULL THEN now() END
			FROM orders o JOIN order_state s ON s.issuer_id = o.issuer_id AND s.order_id = o.id
				CROSS JOIN LATERAL (SELECT min(n.created_at) AS since FROM notifications n
					WHERE n.issuer_id = o.issuer_id AND n.issuer_request_id = o.issuer_request_id AND n.outcome = 'parked') p
			WHERE o.issuer_id = $1 AND o.id = $2`, o.issuer, o.id, LaneOf(o.issuer), ClassSingle, ClassBatch, len(o.operations) > 0, o.doubted)
	}
	switch {
	case next.Ended() && (ended != nil || next.Made() != before.Made()):
		releaseGuard(b, o, s.duplicateWindow(o.issuer, o.cardProductID))
	case ended != nil:
		holdGuard(b, o)
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

type event struct {
	seq      int
	kind     EventType
	state    order.State
	previous order.Status
	Cause
}

func queueEvent(b *pgx.Batch, key orderKey, e event) {
	exec(b, `
		INSERT INTO order_events (issuer_id, order_id, seq, type, status, previous_status, attention, cause, cause_id, actor, detail)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`,
		key.issuer, key.id, e.seq, e.kind, e.state.Status, optional(string(e.previous)), attentions(e.state),
		e.Cause.Kind, optional(e.ID), optional(e.Actor), e.Detail)
}

// attentions returns a list that is never null.
func attentions(s order.State) []order.Attention {
	if s.Attention == nil {
		return []order.Attention{}
	}
	return s.Attention
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
