package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"cardorder/internal/order"
)

// insertOrders writes every row of new orders in one statement, so that an order
// costs neither a round trip nor a parse of its own. Each step takes what the one
// before it let through:
//
//	keys    Idempotency-Keys that are free
//	new     orders whose keys are
//	guard   of them, those whose card is free: these get all their other rows
//
// It returns one row for each order in `new`, and whether the guard let it pass.
// Rows are locked in one order, so that two statements with the same keys wait for each
// other and never in a circle; cards by their bytes, as transactions that sort them here
// do it.
//
// Parked notifications that name an order are there when D1 got it before: from an
// older system, or from this one before a database was restored. D1 is then asked
// before anything is sent.
const insertOrders = `
	WITH input AS MATERIALIZED (
		SELECT * FROM unnest($1::text[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
			$8::text[], $9::text[], $10::text[], $11::boolean[], $12::text[], $13::text[], $14::bytea[],
			$15::text[], $16::text[], $17::bytea[], $18::bytea[], $19::uuid[], $20::uuid[], $21::boolean[], $22::smallint[], $23::boolean[], $24::text[],
			$32::timestamptz[], $33::interval[], $34::integer[], $37::text[])
		AS t(issuer_id, id, issuer_request_id, card_id, consumer_id, card_product_id, distribution_channel,
			group_id, terms, metadata, urgent, duplicate_override, warnings, content_hash,
			created_by, key, production, encrypted_data, replaces_order_id, batch_id, hold, class, renews, ends_at,
			asked_not_before, delay, look, key_id),
		LATERAL (SELECT nullif(greatest(asked_not_before, now() + delay, now()), now()) AS not_before) n,
		LATERAL (SELECT CASE WHEN hold THEN 'request' WHEN not_before IS NOT NULL THEN 'schedule' END AS hold_reason) h
	), keys AS (
		INSERT INTO idempotency_keys (issuer_id, key, order_id)
		SELECT issuer_id, key, id FROM input WHERE key IS NOT NULL ORDER BY issuer_id, key
		ON CONFLICT DO NOTHING RETURNING order_id
	), new AS (
		INSERT INTO orders (issuer_id, id, issuer_request_id, card_id, consumer_id, card_product_id,
			distribution_channel, group_id, terms, metadata, urgent, duplicate_override, warnings,
			content_hash, content_hash_version, created_by, replaces_order_id, batch_id, not_before)
		SELECT issuer_id, id, issuer_request_id, card_id, consumer_id, card_product_id,
			distribution_channel, group_id, terms::jsonb, metadata::jsonb, urgent, duplicate_override,
			CASE WHEN renews AND NOT EXISTS (SELECT FROM orders o WHERE o.issuer_id = i.issuer_id AND o.card_id = i.card_id)
				THEN warnings::text[] || $25::text ELSE warnings::text[] END,
			content_hash, $26, created_by, replaces_order_id, batch_id, not_before
		FROM input i WHERE key IS NULL OR id IN (SELECT order_id FROM keys)
		ORDER BY issuer_id, issuer_request_id
		ON CONFLICT DO NOTHING RETURNING id, created_at, warnings, not_before
	), guard AS (
		INSERT INTO card_guard AS g (issuer_id, card_id, order_ids)
		SELECT issuer_id, card_id, ARRAY[id] FROM input WHERE id IN (SELECT id FROM new)
		ORDER BY issuer_id COLLATE "C", card_id COLLATE "C"
		ON CONFLICT (issuer_id, card_id) DO UPDATE SET order_ids = g.order_ids || EXCLUDED.order_ids
		WHERE EXCLUDED.order_ids[1] = ANY ($27::uuid[])
			OR g.order_ids = '{}' AND (EXCLUDED.order_ids[1] <> ALL ($28::uuid[]) OR g.creation_until IS NULL OR g.creation_until <= now())
		RETURNING g.order_ids[cardinality(g.order_ids)] AS id
	), fresh AS MATERIALIZED (
		SELECT i.*, CASE WHEN hold_reason IS NULL THEN $35 ELSE $36 END AS status FROM input i JOIN guard USING (id)
	), parked AS (
		SELECT f.id, array_agg(n.id) AS notifications, min(n.created_at) AS since
		FROM fresh f JOIN notifications n ON n.issuer_id = f.issuer_id AND n.issuer_request_id = f.issuer_request_id AND n.outcome = 'parked'
		GROUP BY f.id
	), state AS (
		INSERT INTO order_state (issuer_id, order_id, version, status, ends_at, hold, next_check_at)
		SELECT issuer_id, id, 1, status, ends_at, hold_reason, coalesce(not_before, CASE WHEN look >= 0 THEN now() + look * interval '1 s' END) FROM fresh
	), payload AS (
		INSERT INTO order_payload (issuer_id, order_id, production, encrypted_data, key_id)
		SELECT issuer_id, id, production, encrypted_data, key_id FROM fresh
	), event AS (
		INSERT INTO order_events (issuer_id, order_id, seq, type, status, attention, cause, actor)
		SELECT issuer_id, id, 1, $29, status, '{}', $30, created_by FROM fresh
	), message AS (
		INSERT INTO outbox (lane, kind, class, issuer_id, order_id, card_id, first_sent_at, maybe_sent_at)
		SELECT $31 || f.issuer_id, 'submit', f.class, f.issuer_id, f.id, f.card_id, p.since, CASE WHEN p.since IS NOT NULL THEN now() END
		FROM fresh f LEFT JOIN parked p USING (id) WHERE f.hold_reason IS NULL
	)
	SELECT new.id, new.created_at, new.warnings, new.not_before, guard.id IS NOT NULL, parked.notifications
	FROM new LEFT JOIN guard USING (id) LEFT JOIN parked USING (id)`

// columns of insertOrders, one element for each order.
type insertColumns struct {
	issuer, request, card, consumer, product, channel, terms, warnings, client, endsAt []string
	group, metadata, override, key                                                     []*string
	keyID                                                                              texts
	id, replaces, batch                                                                []pgtype.UUID
	urgent, renews, hold                                                               []bool
	notBefore                                                                          []pgtype.Timestamptz
	delay                                                                              []time.Duration
	look                                                                               []int32
	hash, production, encryptedData                                                    [][]byte
	class                                                                              []int16
	overriding, creations                                                              []pgtype.UUID
}

// insertDistinct inserts those of the entries that are new orders and whose cards are
// free. The entries share no key with each other.
func (s *Store) insertDistinct(ctx context.Context, tx pgx.Tx, entries []*entry) error {
	byID := make(map[uuid.UUID]*entry, len(entries))
	c := insertColumns{overriding: []pgtype.UUID{}, creations: []pgtype.UUID{}}
	for _, e := range entries {
		byID[e.order.ID] = e
		c.add(e)
	}
	rows, err := tx.Query(ctx, insertOrders,
		c.issuer, c.id, c.request, c.card, c.consumer, c.product, c.channel,
		c.group, c.terms, c.metadata, c.urgent, c.override, c.warnings, c.hash,
		c.client, c.key, c.production, c.encryptedData, c.replaces, c.batch, c.hold, c.class, c.renews, c.endsAt,
		order.WarningNeverOrdered, comparisonVersion, c.overriding, c.creations, EventAccepted, CauseRequest, LaneOf(""),
		c.notBefore, c.delay, c.look, order.Accepted, order.Held, c.keyID)
	if err != nil {
		return fmt.Errorf("inserting orders: %w", err)
	}
	var id uuid.UUID
	var createdAt time.Time
	var warnings []string
	var notBefore *time.Time
	var passed bool
	var parked []int64
	var guarded []*entry
	_, err = pgx.ForEachRow(rows, []any{&id, &createdAt, &warnings, &notBefore, &passed, &parked}, func() error {
		e := byID[id]
		if !passed {
			guarded = append(guarded, e)
			return nil
		}
		e.parked, e.order.Warnings = parked, warnings
		s.isAccepted(e, createdAt, notBefore)
		warnings, parked, notBefore = nil, nil, nil // the next row gets its own
		return nil
	})
	if err != nil {
		return fmt.Errorf("inserting orders: %w", err)
	}
	return undo(ctx, tx, entries, guarded)
}

// undo removes what was written of orders that did not get through all steps: the rows
// of those that the guard stopped, and the keys of all that are not in.
func undo(ctx context.Context, tx pgx.Tx, entries, guarded []*entry) error {
	var b pgx.Batch
	if len(guarded) > 0 {
		issuers, ids := make([]string, len(guarded)), make([]uuid.UUID, len(guarded))
		for i, e := range guarded {
			issuers[i], ids[i] = e.IssuerID, e.order.ID
		}
		exec(&b, `DELETE FROM orders WHERE (issuer_id, id) IN (SELECT * FROM unnest($1::text[], $2::uuid[]))`, issuers, ids)
	}
	var issuers, keys []string
	var ids []uuid.UUID
	for _, e := range entries {
		if e.verdict != verdictAccepted && e.IdempotencyKey != "" {
			issuers, keys, ids = append(issuers, e.IssuerID), append(keys, e.IdempotencyKey), append(ids, e.order.ID)
		}
	}
	if len(keys) > 0 {
		// Only those that were written for these orders: others lead to theirs.
		exec(&b, `DELETE FROM idempotency_keys WHERE (issuer_id, key, order_id) IN (SELECT * FROM unnest($1::text[], $2::text[], $3::uuid[]))`,
			issuers, keys, ids)
	}
	if err := send(ctx, tx, &b); err != nil {
		return fmt.Errorf("undoing what did not get in: %w", err)
	}
	return nil
}

func (c *insertColumns) add(e *entry) {
	o, id := e.order, pgID(&e.order.ID)
	var group string
	if o.Terms.Shipment != nil {
		group = o.Terms.Shipment.GroupID
	}
	c.issuer, c.id, c.request = append(c.issuer, o.IssuerID), append(c.id, id), append(c.request, o.IssuerRequestID)
	c.card, c.consumer, c.product = append(c.card, o.CardID), append(c.consumer, o.ConsumerID), append(c.product, o.CardProductID)
	c.channel, c.group = append(c.channel, string(o.Channel)), append(c.group, optional(group))
	c.terms, c.metadata = append(c.terms, e.terms), append(c.metadata, e.metadata)
	c.urgent, c.override = append(c.urgent, o.Urgent), append(c.override, optional(o.DuplicateOverride))
	// Warnings are codes of ours: they need no quoting.
	c.warnings, c.hash = append(c.warnings, "{"+strings.Join(e.Request.Warnings, ",")+"}"), append(c.hash, e.hash)
	c.client, c.key = append(c.client, o.CreatedBy), append(c.key, optional(e.IdempotencyKey))
	c.production, c.encryptedData = append(c.production, e.sealed.production), append(c.encryptedData, e.sealed.encryptedData)
	c.replaces, c.batch = append(c.replaces, pgID(e.replaces)), append(c.batch, pgID(e.batchID))
	c.class, c.look = append(c.class, int16(e.class)), append(c.look, e.look)
	c.waits(e)
	c.renews, c.endsAt = append(c.renews, !e.creation()), append(c.endsAt, string(o.State.EndsAt))
	c.keyID = append(c.keyID, e.keyID)
	if e.overrides() {
		c.overriding = append(c.overriding, id)
	}
	if e.barred() {
		c.creations = append(c.creations, id)
	}
}

// waits adds why an order is not sent at once. Most are, and need nothing of that.
func (c *insertColumns) waits(e *entry) {
	row := len(c.id) - 1
	if e.hold {
		c.hold = putAt(c.hold, row, true)
	}
	if !e.Request.NotBefore.IsZero() {
		c.notBefore = putAt(c.notBefore, row, timeOrNull(e.Request.NotBefore))
	}
	if e.delay > 0 {
		c.delay = putAt(c.delay, row, e.delay)
	}
}

// texts, uuids and times are array parameters whose elements pgx takes where they are: those of
// plain slices it copies to the heap one by one.
type (
	texts []string
	uuids []pgtype.UUID
	times []pgtype.Timestamptz
	text  string
)

func (t *text) TextValue() (pgtype.Text, error) {
	return pgtype.Text{String: string(*t), Valid: true}, nil
}

func (a texts) Dimensions() []pgtype.ArrayDimension { return oneDimension(len(a)) }
func (a texts) Index(i int) any                     { return (*text)(&a[i]) }
func (a texts) IndexType() any                      { return new(text) }

func (a uuids) Dimensions() []pgtype.ArrayDimension { return oneDimension(len(a)) }
func (a uuids) Index(i int) any                     { return &a[i] }
func (a uuids) IndexType() any                      { return new(pgtype.UUID) }

func (a times) Dimensions() []pgtype.ArrayDimension { return oneDimension(len(a)) }
func (a times) Index(i int) any                     { return &a[i] }
func (a times) IndexType() any                      { return new(pgtype.Timestamptz) }

func oneDimension(n int) []pgtype.ArrayDimension {
	return []pgtype.ArrayDimension{{Length: int32(n), LowerBound: 1}} //nolint:gosec // some hundreds
}

// pgID is an id as pgx writes it without a detour: a fifth of the allocations of an
// order otherwise. Nil is NULL.
func pgID(id *uuid.UUID) pgtype.UUID {
	if id == nil {
		return pgtype.UUID{}
	}
	return pgtype.UUID{Bytes: *id, Valid: true}
}
