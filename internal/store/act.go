package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"cardorder/internal/order"
)

// Action is what somebody wants done with an order.
type Action struct {
	IssuerID string
	OrderID  uuid.UUID
	Actor    string // the client's name
	Version  int    // that the order must have, else ErrVersion; 0 for any
}

// ErrVersion is returned when an order is not at the version that was asked for.
var ErrVersion = errors.New("the order has another version")

// ErrNotSent is returned by Refresh for an order that D1 has never heard of.
var ErrNotSent = errors.New("the order was not sent yet")

// ErrNotRetryable is returned by Retry for an order that needs no sending.
var ErrNotRetryable = errors.New("the order cannot be sent again")

// act does something with one order while it is locked, and returns the order as it
// then is.
func (s *Store) act(ctx context.Context, a Action, do func(tx pgx.Tx, b *pgx.Batch, w *advances, o *lockedOrder) error) (*Order, error) {
	var locked map[orderKey]*lockedOrder
	err := s.inTx(ctx, func(tx pgx.Tx) (err error) {
		key := orderKey{a.IssuerID, a.OrderID}
		if locked, err = lockToAct(ctx, tx, []orderKey{key}); err != nil {
			return err
		}
		o := locked[key]
		switch {
		case o == nil:
			return ErrNotFound
		case a.Version != 0 && a.Version != o.state.Version:
			return ErrVersion
		}
		w := advances{store: s}
		var b pgx.Batch
		if err := do(tx, &b, &w, o); err != nil {
			return err
		}
		w.queue(&b)
		return send(ctx, tx, &b)
	})
	if err != nil {
		return nil, err
	}
	s.logChanges(ctx, locked)
	s.cfg.OnReady(LaneOf(a.IssuerID))
	return s.Order(ctx, a.IssuerID, a.OrderID)
}

// Refresh has D1 asked about an order as soon as possible, and returns the order as
// it is before the answer. The error is ErrNotFound, ErrVersion or ErrNotSent when it
// cannot be asked about.
func (s *Store) Refresh(ctx context.Context, a Action) (*Order, error) {
	o, err := s.act(ctx, a, func(tx pgx.Tx, b *pgx.Batch, w *advances, o *lockedOrder) error {
		sent, unknown, err := lockMessage(ctx, tx, o)
		if err != nil {
			return err
		}
		if !sent {
			return ErrNotSent
		}
		if unknown { // its own message asks
			exec(b, `
				UPDATE outbox SET run_at = least(run_at, now())
				WHERE issuer_id = $1 AND order_id = $2 AND kind = $3 AND claim_token IS NULL AND run_at < 'infinity'`,
				o.issuer, o.id, KindSubmit)
		} else {
			exec(b, `
				INSERT INTO outbox AS m (lane, kind, class, issuer_id, order_id, card_id, first_sent_at)
				SELECT $3, $4, $5, o.issuer_id, o.id, o.card_id, coalesce(s.first_sent_at, o.created_at)
				FROM orders o JOIN order_state s ON s.issuer_id = o.issuer_id AND s.order_id = o.id
				WHERE o.issuer_id = $1 AND o.id = $2
				ON CONFLICT (issuer_id, order_id, kind) DO UPDATE SET run_at = least(m.run_at, now()) WHERE m.claim_token IS NULL`,
				o.issuer, o.id, LaneOf(o.issuer), KindAsk, ClassQuestion)
		}
		w.advance(o, Cause{Kind: CauseRequest, Actor: a.Actor, Action: EventRefreshRequested}, order.Details{})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("having D1 asked about an order: %w", err)
	}
	return o, nil
}

// lockMessage locks the message that brings an order to D1, if there is one. sent tells
// that D1 may have heard of the order, unknown that its message asks D1.
func lockMessage(ctx context.Context, tx pgx.Tx, o *lockedOrder) (sent, unknown bool, err error) {
	rows, err := tx.Query(ctx, `
		SELECT first_sent_at, maybe_sent_at IS NOT NULL AND run_at < 'infinity' FROM outbox
		WHERE issuer_id = $1 AND order_id = $2 AND kind = $3 FOR UPDATE`, o.issuer, o.id, KindSubmit)
	if err != nil {
		return false, false, fmt.Errorf("locking a message: %w", err)
	}
	var first *time.Time
	if _, err := pgx.ForEachRow(rows, []any{&first, &unknown}, func() error { return nil }); err != nil {
		return false, false, fmt.Errorf("locking a message: %w", err)
	}
	if first != nil || o.doubted || o.state.Rank > 0 || len(o.operations) > 0 || o.state.Status == order.OutcomeUnknown {
		return true, unknown, nil
	}
	err = tx.QueryRow(ctx, `SELECT first_sent_at IS NOT NULL FROM order_state WHERE issuer_id = $1 AND order_id = $2`, o.issuer, o.id).Scan(&sent)
	if err != nil {
		return false, false, fmt.Errorf("reading when an order was sent: %w", err)
	}
	return sent, unknown, nil
}

// Retry is what Store.Retry needs beside the action.
type Retry struct {
	Action
	EncryptedData     string // replaces the order's when not empty
	DuplicateOverride string // the reason, when another order of the card is in the way
}

// Retry starts the sending of an order anew, with the same issuerRequestId: one that
// was rejected or given up is sent, one whose outcome is unknown is asked about and
// may be sent again. One that needs other card data and gets it goes on as it was. The
// error is a *ConflictError when another order of the card is in the way; ErrNotFound,
// ErrVersion or ErrNotRetryable when it cannot be.
func (s *Store) Retry(ctx context.Context, r Retry) (*Order, error) {
	var sealed []byte
	if r.EncryptedData != "" {
		var err error
		if sealed, err = s.cfg.Seal.seal([]byte(r.EncryptedData), columnEncryptedData, r.IssuerID, r.OrderID.String()); err != nil {
			return nil, err
		}
	}
	cause := Cause{Kind: CauseRequest, Actor: r.Actor, Action: EventRetryRequested}
	detail := retryDetail{DuplicateOverride: r.DuplicateOverride, CardDataReplaced: sealed != nil}
	if detail != (retryDetail{}) {
		var err error
		if cause.Detail, err = json.Marshal(detail); err != nil {
			return nil, fmt.Errorf("writing the detail of a retry: %w", err)
		}
	}
	o, err := s.act(ctx, r.Action, func(tx pgx.Tx, b *pgx.Batch, w *advances, o *lockedOrder) error {
		var evidence []order.Evidence
		if sealed != nil {
			exec(b, `UPDATE order_payload SET encrypted_data = $3, key_id = $4 WHERE issuer_id = $1 AND order_id = $2`,
				o.issuer, o.id, sealed, keyIDOf(r.EncryptedData))
			queueRenewed(b, o)
			evidence = []order.Evidence{order.Details{}, order.Cured{Attention: order.AttentionCardDataNeeded}}
		}
		switch {
		case o.state.Retryable():
			if err := startAnew(ctx, tx, o, r.DuplicateOverride != ""); err != nil {
				return err
			}
			w.advance(o, cause, append(evidence, order.Retry{})...)
			w.withdrawCancels(o, cause)
			return nil
		case sealed != nil && o.state.NeedsCardData(): // it goes on as it was
			w.advance(o, cause, evidence...)
			return nil
		}
		return ErrNotRetryable
	})
	if err != nil {
		return nil, fmt.Errorf("retrying an order: %w", err)
	}
	return o, nil
}

// startAnew lifts the limits on the sending of an order, and what somebody wanted of it
// while it was being sent, if no other order of the card is in the way. A worker that has
// the message keeps it; its answer finds the limits lifted.
func startAnew(ctx context.Context, tx pgx.Tx, o *lockedOrder, override bool) error {
	_, err := tx.Exec(ctx, `
		UPDATE outbox SET resend_off = false, trying_for = '0', halt = NULL,
			refused_since = NULL, refused_at = NULL, reject_after = NULL, tries = 0, asks = 0, negatives = 0,
			run_at = CASE WHEN claim_token IS NULL THEN now() ELSE run_at END
		WHERE issuer_id = $1 AND order_id = $2 AND kind = $3`, o.issuer, o.id, KindSubmit)
	if err != nil {
		return fmt.Errorf("preparing a message: %w", err)
	}
	return mayRetry(ctx, tx, o, override)
}

// retryDetail is what the timeline tells of a retry.
type retryDetail struct {
	DuplicateOverride string `json:"duplicateOverride,omitempty"` // the reason given
	CardDataReplaced  bool   `json:"cardDataReplaced,omitempty"`
}

// mayRetry passes the duplicate guard again. The order holds its card still, since it
// has not ended; but one that was let in beside it, or has made the card meanwhile, is
// in the way.
func mayRetry(ctx context.Context, tx pgx.Tx, o *lockedOrder, override bool) error {
	var others []uuid.UUID
	var creation *uuid.UUID
	err := tx.QueryRow(ctx, `
		SELECT array_remove(order_ids, $3), CASE WHEN creation_until > now() THEN creation_order_id END
		FROM card_guard WHERE issuer_id = $1 AND card_id = $2 FOR UPDATE`, o.issuer, o.cardID, o.id).Scan(&others, &creation)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil
	case err != nil:
		return fmt.Errorf("reading the duplicate guard: %w", err)
	case override:
		return nil
	case len(others) > 0:
		return &ConflictError{DuplicateOrder, others[len(others)-1]}
	case creation != nil && *creation != o.id && o.issuance == order.IssuanceCreation:
		return &ConflictError{DuplicateOrder, *creation}
	}
	return nil
}
