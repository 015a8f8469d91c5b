package store

import (
	"context"
	"crypto/hmac"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"cardorder/internal/order"
)

// Acceptance is an order to be stored, after all its rules were met.
type Acceptance struct {
	IssuerID       string
	IdempotencyKey string // "" when the request carried none
	Client         string // name of the client that asks
	Request        *order.Request
}

// Accepted is the order that an acceptance led to.
type Accepted struct {
	Order    *Order
	Replayed bool // the order was there before
	// CardDataDiffers tells that a replay carried another JWE than the first
	// request. The first one stands: two JWEs of the same card always differ.
	CardDataDiffers bool
}

// ConflictError refuses a request because of an order that is there already.
type ConflictError struct {
	Kind    ConflictKind
	OrderID uuid.UUID // the order that is in the way
}

// ConflictKind tells what the request and the order have in common.
type ConflictKind string

const (
	// ContentDiffers: the same key, but another request.
	ContentDiffers ConflictKind = "idempotency-conflict"
	// DuplicateOrder: another open order for the same card, or a CREATION of a
	// card that was created a short time ago.
	DuplicateOrder ConflictKind = "duplicate-order"
)

func (e *ConflictError) Error() string { return string(e.Kind) + ": order " + e.OrderID.String() }

// LaneOf names the lane of an issuer's D1.
func LaneOf(issuer string) string { return "d1/" + issuer }

// errGuarded leaves the accepting transaction when the guard refuses.
var errGuarded = errors.New("the card is guarded")

// Accept stores an order with everything that belongs to it in one transaction
// and returns after the commit. A request that was accepted before leads to
// its order again. The error is a *ConflictError when another order is in the way.
func (s *Store) Accept(ctx context.Context, a Acceptance) (*Accepted, error) {
	for try := 1; ; try++ {
		o, err := s.insertOrder(ctx, a)
		if err == nil {
			s.cfg.OnReady(LaneOf(a.IssuerID))
			return &Accepted{Order: o}, nil
		}
		switch violated(err) {
		case "orders_issuer_request_id", "idempotency_keys_pkey":
			accepted, err := s.replay(ctx, a)
			if errors.Is(err, ErrNotFound) && try < 3 {
				continue // the order went away in between
			}
			return accepted, err
		}
		if errors.Is(err, errGuarded) {
			other, err := s.guardingOrder(ctx, a)
			if errors.Is(err, ErrNotFound) && try < 3 {
				continue // it ended in between
			}
			if err != nil {
				return nil, err
			}
			return nil, &ConflictError{DuplicateOrder, other}
		}
		return nil, fmt.Errorf("storing an order: %w", err)
	}
}

// insertOrder writes all rows of a new order. The unique indexes decide: first
// those of idempotency, then the guard, since a repeated request is no duplicate.
func (s *Store) insertOrder(ctx context.Context, a Acceptance) (*Order, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("making an order id: %w", err)
	}
	p := a.Request.Production // a copy: what is completed here is not the caller's
	if p.IssuerRequestID == "" {
		p.IssuerRequestID = id.String()
	}
	encryptedData := p.EncryptedData
	p.EncryptedData = ""
	production, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("writing the production request: %w", err)
	}
	sealed, err := s.cfg.Seal.sealPayload(a.IssuerID, id, production, encryptedData)
	if err != nil {
		return nil, err
	}
	o := &Order{
		IssuerID: a.IssuerID, ID: id, IssuerRequestID: p.IssuerRequestID,
		CardID: a.Request.CardID, ConsumerID: p.ConsumerID, CardProductID: p.CardProductID, Channel: p.Channel,
		Terms: p.Terms(), Metadata: a.Request.Metadata, Urgent: a.Request.Urgent,
		DuplicateOverride: a.Request.DuplicateOverride, Warnings: a.Request.Warnings, CreatedBy: a.Client,
		State: order.NewState(a.Request.EndsAt),
	}
	var known []int64
	err = s.inTx(ctx, func(tx pgx.Tx) (err error) {
		known, err = s.insertRows(ctx, tx, a, o, sealed)
		return err
	})
	if err == nil && len(known) > 0 {
		s.cfg.OnParked(known)
	}
	return o, err
}

// insertRows returns the parked notifications that name the order already. There
// are some when D1 got it before: from an older system, or from this one before a
// database was restored. D1 is then asked before anything is sent.
func (s *Store) insertRows(ctx context.Context, tx pgx.Tx, a Acceptance, o *Order, sealed sealedPayload) (known []int64, err error) {
	var groupID string
	if o.Terms.Shipment != nil {
		groupID = o.Terms.Shipment.GroupID
	}
	warnings := o.Warnings
	if warnings == nil {
		warnings = []string{}
	}
	var b pgx.Batch
	b.Queue(`
		INSERT INTO orders (issuer_id, id, issuer_request_id, card_id, consumer_id, card_product_id,
			distribution_channel, group_id, terms, metadata, urgent, duplicate_override, warnings,
			content_hash, content_hash_version, created_by)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
		RETURNING created_at`,
		o.IssuerID, o.ID, o.IssuerRequestID, o.CardID, o.ConsumerID, o.CardProductID,
		o.Channel, optional(groupID), o.Terms, o.Metadata, o.Urgent, optional(o.DuplicateOverride), warnings,
		s.cfg.HashKeys.sum(a.Request.Canonical), contentHashVersion, o.CreatedBy,
	).QueryRow(func(row pgx.Row) error {
		if err := row.Scan(&o.CreatedAt); err != nil {
			return err
		}
		o.UpdatedAt = o.CreatedAt
		return nil
	})
	if a.IdempotencyKey != "" {
		exec(&b, `INSERT INTO idempotency_keys (issuer_id, key, order_id) VALUES ($1, $2, $3)`,
			o.IssuerID, a.IdempotencyKey, o.ID)
	}
	b.Queue(`
		INSERT INTO card_guard AS g (issuer_id, card_id, order_ids) VALUES ($1, $2, ARRAY[$3::uuid])
		ON CONFLICT (issuer_id, card_id) DO UPDATE SET order_ids = g.order_ids || EXCLUDED.order_ids
		WHERE $4 OR g.order_ids = '{}' AND (NOT $5 OR g.creation_until IS NULL OR g.creation_until <= now())`,
		o.IssuerID, o.CardID, o.ID, o.DuplicateOverride != "", o.Terms.Services.Issuance == order.IssuanceCreation,
	).Exec(func(tag pgconn.CommandTag) error {
		if tag.RowsAffected() == 0 {
			return errGuarded
		}
		return nil
	})
	exec(&b, `INSERT INTO order_state (issuer_id, order_id, version, status, ends_at) VALUES ($1, $2, $3, $4, $5)`,
		o.IssuerID, o.ID, o.State.Version, o.State.Status, o.State.EndsAt)
	exec(&b, `INSERT INTO order_payload (issuer_id, order_id, production, encrypted_data) VALUES ($1, $2, $3, $4)`,
		o.IssuerID, o.ID, sealed.production, sealed.encryptedData)
	queueEvent(&b, orderKey{o.IssuerID, o.ID}, event{
		seq: o.State.Version, kind: EventAccepted, state: o.State, Cause: Cause{Kind: CauseRequest, Actor: o.CreatedBy},
	})
	b.Queue(`
		SELECT id FROM notifications WHERE issuer_id = $1 AND issuer_request_id = $2 AND outcome = 'parked'`,
		o.IssuerID, o.IssuerRequestID).Query(func(rows pgx.Rows) (err error) {
		known, err = pgx.CollectRows(rows, pgx.RowTo[int64])
		return err
	})
	exec(&b, `
		INSERT INTO outbox (lane, kind, issuer_id, order_id, card_id, first_sent_at, maybe_sent_at)
		SELECT $1, 'submit', $2, $3, $4, min(n.created_at), CASE WHEN count(*) > 0 THEN now() END
		FROM notifications n WHERE n.issuer_id = $2 AND n.issuer_request_id = $5 AND n.outcome = 'parked'`,
		LaneOf(o.IssuerID), o.IssuerID, o.ID, o.CardID, o.IssuerRequestID)
	return known, send(ctx, tx, &b)
}

// replay finds the order that one of the request's keys belongs to and checks
// that the request is the same.
func (s *Store) replay(ctx context.Context, a Acceptance) (*Accepted, error) {
	type candidate struct {
		ID      uuid.UUID
		Hash    []byte
		Version int16
	}
	rows, err := s.pool.Query(ctx, `
		SELECT o.id, o.content_hash, o.content_hash_version FROM orders o
		WHERE o.issuer_id = $1 AND o.id IN (
			SELECT k.order_id FROM idempotency_keys k WHERE k.issuer_id = $1 AND k.key = $2
			UNION ALL
			SELECT r.id FROM orders r WHERE r.issuer_id = $1 AND r.issuer_request_id = $3)
		ORDER BY o.id`,
		a.IssuerID, a.IdempotencyKey, a.Request.Production.IssuerRequestID)
	if err != nil {
		return nil, fmt.Errorf("looking for the order of a repeated request: %w", err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[candidate])
	if err != nil {
		return nil, fmt.Errorf("reading the order of a repeated request: %w", err)
	}
	if len(found) == 0 {
		return nil, ErrNotFound
	}
	first := found[0]
	same := first.Version == contentHashVersion && hmac.Equal(first.Hash, s.cfg.HashKeys.sum(a.Request.Canonical))
	if len(found) > 1 || !same {
		return nil, &ConflictError{ContentDiffers, first.ID}
	}
	if a.IdempotencyKey != "" {
		if err := s.bindKey(ctx, a.IssuerID, a.IdempotencyKey, first.ID); err != nil {
			return nil, err
		}
	}
	o, err := s.Order(ctx, a.IssuerID, first.ID)
	if err != nil {
		return nil, err
	}
	differs, err := s.cardDataDiffers(ctx, o, a.Request.Production.EncryptedData)
	if err != nil {
		return nil, err
	}
	return &Accepted{Order: o, Replayed: true, CardDataDiffers: differs}, nil
}

// bindKey makes key lead to the order from now on.
func (s *Store) bindKey(ctx context.Context, issuer, key string, id uuid.UUID) error {
	_, err := s.pool.Exec(ctx, `
		INSERT INTO idempotency_keys (issuer_id, key, order_id) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`,
		issuer, key, id)
	if err != nil {
		return fmt.Errorf("binding an idempotency key: %w", err)
	}
	var holder uuid.UUID
	err = s.pool.QueryRow(ctx, `SELECT order_id FROM idempotency_keys WHERE issuer_id = $1 AND key = $2`, issuer, key).Scan(&holder)
	if err != nil {
		return fmt.Errorf("reading an idempotency key: %w", err)
	}
	if holder != id { // another request took the key at this very moment
		return &ConflictError{ContentDiffers, holder}
	}
	return nil
}

func (s *Store) cardDataDiffers(ctx context.Context, o *Order, encryptedData string) (bool, error) {
	var sealed []byte
	err := s.pool.QueryRow(ctx, `SELECT encrypted_data FROM order_payload WHERE issuer_id = $1 AND order_id = $2`,
		o.IssuerID, o.ID).Scan(&sealed)
	if errors.Is(err, pgx.ErrNoRows) {
		return true, nil // erased: nothing is left to compare with
	}
	if err != nil {
		return false, fmt.Errorf("reading the card data of an order: %w", err)
	}
	first, err := s.cfg.Seal.open(sealed, columnEncryptedData, o.IssuerID, o.ID.String())
	if err != nil {
		return true, nil //nolint:nilerr // it is only compared: what cannot be opened is not the same
	}
	return string(first) != encryptedData, nil
}

// guardingOrder names the order because of which the guard refused.
func (s *Store) guardingOrder(ctx context.Context, a Acceptance) (uuid.UUID, error) {
	var id *uuid.UUID
	err := s.pool.QueryRow(ctx, `
		SELECT CASE WHEN order_ids <> '{}' THEN order_ids[cardinality(order_ids)]
		            WHEN $3 AND creation_until > now() THEN creation_order_id END
		FROM card_guard WHERE issuer_id = $1 AND card_id = $2`,
		a.IssuerID, a.Request.CardID, a.Request.Production.Services.Issuance == order.IssuanceCreation).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && id == nil {
		return uuid.Nil, ErrNotFound
	}
	if err != nil {
		return uuid.Nil, fmt.Errorf("reading the duplicate guard: %w", err)
	}
	return *id, nil
}

func (s *Store) duplicateWindow(issuer, cardProductID string) time.Duration {
	if s.cfg.DuplicateWindow != nil {
		if window := s.cfg.DuplicateWindow(issuer, cardProductID); window > 0 {
			return window
		}
	}
	return 30 * 24 * time.Hour
}

// releaseGuard queues what an order's end means for its card: the order holds
// it no longer, and a CREATION that was produced bars another for a while.
func releaseGuard(b *pgx.Batch, o *lockedOrder, window time.Duration) {
	var until *time.Duration
	if o.issuance == order.IssuanceCreation && o.state.Made() {
		until = &window
	}
	exec(b, `
		UPDATE card_guard SET order_ids = array_remove(order_ids, $3),
			creation_order_id = CASE WHEN $4::interval IS NULL THEN creation_order_id ELSE $3 END,
			creation_until = CASE WHEN $4::interval IS NULL THEN creation_until ELSE now() + $4 END
		WHERE issuer_id = $1 AND card_id = $2`,
		o.issuer, o.cardID, o.id, until)
	exec(b, `
		DELETE FROM card_guard WHERE issuer_id = $1 AND card_id = $2
			AND order_ids = '{}' AND (creation_until IS NULL OR creation_until <= now())`,
		o.issuer, o.cardID)
}

// holdGuard queues the opposite, for an order that turned out not to have ended.
func holdGuard(b *pgx.Batch, o *lockedOrder) {
	exec(b, `
		INSERT INTO card_guard AS g (issuer_id, card_id, order_ids) VALUES ($1, $2, ARRAY[$3::uuid])
		ON CONFLICT (issuer_id, card_id) DO UPDATE SET order_ids = array_remove(g.order_ids, $3) || EXCLUDED.order_ids`,
		o.issuer, o.cardID, o.id)
}
