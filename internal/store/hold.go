package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"cardorder/internal/order"
)

// Events of what people do with an order.
const (
	EventHoldRequested    EventType = "hold-requested"
	EventReleaseRequested EventType = "release-requested"
	EventNoteAdded        EventType = "note-added"
	EventAttentionCleared EventType = "attention-cleared" // somebody has dealt with it
	EventReordered        EventType = "reordered"         // another order stands in for this one
)

// ErrNotHoldable is returned by HoldOrder for an order that D1 has, or that has ended.
var ErrNotHoldable = errors.New("the order cannot be held")

// ErrNotHeld is returned by ReleaseOrder for an order that nobody holds.
var ErrNotHeld = errors.New("the order is not held")

// Hold is what HoldOrder and ReleaseOrder need beside the action.
type Hold struct {
	Action
	Reason            string // "" for none
	DuplicateOverride string // of a release: the reason, when another order of the card is in the way
}

// holdDetail is what the timeline tells of a hold or a release.
type holdDetail struct {
	Reason            string `json:"reason,omitempty"`
	DuplicateOverride string `json:"duplicateOverride,omitempty"`
}

func (h Hold) cause(action EventType) (Cause, error) {
	cause := Cause{Kind: CauseRequest, Actor: h.Actor, Action: action}
	detail := holdDetail{h.Reason, h.DuplicateOverride}
	if detail == (holdDetail{}) {
		return cause, nil
	}
	var err error
	if cause.Detail, err = json.Marshal(detail); err != nil {
		return cause, fmt.Errorf("writing the detail of a hold: %w", err)
	}
	return cause, nil
}

// HoldOrder keeps an order from being sent until somebody releases it. One that D1
// certainly does not have is held at once. Of one that is being sent, or whose outcome is
// unknown, the wish is written down (Order.HoldPending): it is held as soon as it is
// certain that D1 does not have it, and gets an attention if D1 has. The error is
// ErrNotFound, ErrVersion or ErrNotHoldable when it cannot be.
func (s *Store) HoldOrder(ctx context.Context, h Hold) (*Order, error) {
	cause, err := h.cause(EventHoldRequested)
	if err != nil {
		return nil, err
	}
	o, err := s.act(ctx, h.Action, func(tx pgx.Tx, b *pgx.Batch, w *advances, o *lockedOrder) error {
		waits, certain, err := certainlyHere(ctx, tx, o)
		if err != nil {
			return err
		}
		status := o.state.Status
		switch {
		case status == order.Held && o.state.Hold == order.HeldByPerson, o.halt == BatchHold:
			// It is, or is about to be.
		case o.halt != "":
			return ErrNotHoldable // somebody wants it cancelled
		case status == order.Held, status == order.Accepted && certain:
			w.advance(o, cause, order.Hold{Reason: order.HeldByPerson})
		case o.state.ToBeSent() && waits:
			queueHalt(b, o, BatchHold)
			w.advance(o, cause, order.Details{})
		default:
			return ErrNotHoldable
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("holding an order: %w", err)
	}
	return o, nil
}

// queueHalt notes on the message of an order what somebody wants of it: whoever sends it looks.
func queueHalt(b *pgx.Batch, o *lockedOrder, halt BatchAction) {
	exec(b, `UPDATE outbox SET halt = $4 WHERE issuer_id = $1 AND order_id = $2 AND kind = $3`, o.issuer, o.id, KindSubmit, halt)
}

// ReleaseOrder lifts the hold that an order shows, whoever ordered it, or takes back one
// that did not come true yet. The duplicate guard is passed again. One that is not to be
// sent before a certain time waits for it, unless that is what it was held by. One that
// the program's rule holds is sent in spite of it. The error is a *ConflictError when
// another order of the card is in the way; ErrNotFound, ErrVersion or ErrNotHeld when
// there is nothing to lift.
func (s *Store) ReleaseOrder(ctx context.Context, h Hold) (*Order, error) {
	cause, err := h.cause(EventReleaseRequested)
	if err != nil {
		return nil, err
	}
	o, err := s.act(ctx, h.Action, func(tx pgx.Tx, b *pgx.Batch, w *advances, o *lockedOrder) error {
		switch {
		case o.state.Status == order.Held:
		case o.halt == BatchHold && o.state.ToBeSent():
			exec(b, `UPDATE outbox SET halt = NULL WHERE issuer_id = $1 AND order_id = $2 AND kind = $3 AND halt = $4`,
				o.issuer, o.id, KindSubmit, BatchHold)
			w.advance(o, cause, order.Details{})
			return nil
		default:
			return ErrNotHeld
		}
		var override bool
		err := tx.QueryRow(ctx, `SELECT duplicate_override IS NOT NULL FROM orders WHERE issuer_id = $1 AND id = $2`, o.issuer, o.id).Scan(&override)
		if err != nil {
			return fmt.Errorf("reading an order: %w", err)
		}
		if err := mayRetry(ctx, tx, o, override || h.DuplicateOverride != ""); err != nil {
			return err
		}
		o.admitted = o.state.Hold == order.HeldByRule
		w.advance(o, cause, order.Release{Early: s.clock(o).Early()})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("releasing an order: %w", err)
	}
	return o, nil
}
