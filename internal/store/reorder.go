package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"cardorder/internal/order"
)

// ErrNotReorderable is returned for an order whose card may still come, or whose content is
// not there.
var ErrNotReorderable = errors.New("the order cannot be ordered again")

// Original reads what an order was made from, for one that is to stand in for it. The
// error is ErrNotFound, or ErrNotReorderable when its content is not there.
func (s *Store) Original(ctx context.Context, issuer string, id uuid.UUID) (order.Original, error) {
	o := order.Original{ID: id.String()}
	var sealed sealedPayload
	err := s.pool.QueryRow(ctx, `
		SELECT o.card_id, o.metadata, o.urgent, p.production, p.encrypted_data
		FROM orders o LEFT JOIN order_payload p ON p.issuer_id = o.issuer_id AND p.order_id = o.id
		WHERE o.issuer_id = $1 AND o.id = $2`, issuer, id).Scan(&o.CardID, &o.Metadata, &o.Urgent, &sealed.production, &sealed.encryptedData)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return o, ErrNotFound
	case err != nil:
		return o, fmt.Errorf("reading the content of an order: %w", err)
	case sealed.production == nil:
		return o, ErrNotReorderable
	}
	body, err := s.openBody(issuer, id, sealed)
	if err != nil {
		return o, err
	}
	if err := json.Unmarshal(body, &o.Production); err != nil {
		return o, errors.New("reading the content of an order: it is not what was sealed")
	}
	to, err := s.redirectedTo(ctx, issuer, id)
	if to != nil && o.Production.Shipment != nil {
		o.Production.Shipment.DeliveryAddress = to
	}
	return o, err
}

// Reorder is an order that is to stand in for the one that the action names. Its key is the
// acceptance's, and required.
type Reorder struct {
	Action
	Acceptance
	Reason string
}

// reorderDetail is what the timeline of the first order tells of the other.
type reorderDetail struct {
	OrderID uuid.UUID `json:"orderId"`
	Reason  string    `json:"reason,omitempty"`
}

// reorderable are the statuses of orders whose card does not come any more.
var reorderable = []order.Status{order.Failed, order.Cancelled, order.Returned}

// Reorder stores an order as Accept does, and tells the one that it stands in for. A
// CREATION that this one made does not bar the new one: its card is not in use. A request
// that comes again leads to its order again, whatever became of the first one. The errors
// are Accept's, and ErrNotFound, ErrVersion or ErrNotReorderable.
func (s *Store) Reorder(ctx context.Context, r Reorder) (*Accepted, error) {
	first, err := s.Order(ctx, r.Action.IssuerID, r.OrderID)
	if err != nil {
		return nil, err
	}
	var refusal error
	switch {
	case !slices.Contains(reorderable, first.State.Status):
		refusal = ErrNotReorderable
	case r.Version != 0 && r.Version != first.State.Version:
		refusal = ErrVersion
	}
	a := r.Acceptance
	if refusal != nil { // so that it is no new order, but still leads to one
		a.Faults = append(slices.Clip(a.Faults), order.Fault{Code: order.CodeNotAllowed, Detail: refusal.Error()})
	}
	accepted, err := s.reorder(ctx, r, a)
	if _, refused := errors.AsType[order.Faults](err); refused && refusal != nil {
		return nil, refusal
	}
	if err != nil {
		return nil, fmt.Errorf("ordering again: %w", err)
	}
	return accepted, nil
}

func (s *Store) reorder(ctx context.Context, r Reorder, a Acceptance) (*Accepted, error) {
	if a.hopeless() {
		return nil, a.Faults
	}
	e, err := s.newEntry(a)
	if err != nil {
		return nil, err
	}
	detail, err := json.Marshal(reorderDetail{e.order.ID, r.Reason})
	if err != nil {
		return nil, fmt.Errorf("writing the detail of a reorder: %w", err)
	}
	var locked map[orderKey]*lockedOrder
	err = s.inTx(ctx, func(tx pgx.Tx) (err error) {
		locked = nil
		guard := cardGuard{tx: tx, issuer: a.IssuerID, card: e.order.CardID}
		creation, err := guard.creation(ctx)
		if err != nil {
			return err
		}
		e.recreates = creation == r.OrderID
		if err := s.insert(ctx, tx, []*entry{e}); err != nil || e.verdict != verdictAccepted {
			return err
		}
		if creation, err = guard.creation(ctx); err != nil { // locked now
			return err
		}
		if e.recreates && creation != r.OrderID && creation != uuid.Nil && !e.overrides() {
			return &ConflictError{DuplicateOrder, creation}
		}
		key := orderKey{r.Action.IssuerID, r.OrderID}
		if locked, _, err = lockOrders(ctx, tx, []orderKey{key}, nil); err != nil {
			return err
		}
		o := locked[key]
		switch {
		case o == nil:
			return ErrNotFound
		case r.Version != 0 && r.Version != o.state.Version:
			return ErrVersion
		case !slices.Contains(reorderable, o.state.Status):
			return ErrNotReorderable
		}
		w := advances{store: s}
		w.advance(o, Cause{Kind: CauseRequest, Actor: r.Actor, Action: EventReordered, Detail: detail}, order.Details{})
		var b pgx.Batch
		w.queue(&b)
		return send(ctx, tx, &b)
	})
	if err != nil {
		return nil, err
	}
	s.announce([]*entry{e})
	s.logChanges(ctx, locked)
	return s.accepted(ctx, e)
}

// cardGuard is the duplicate guard of one card.
type cardGuard struct {
	tx           pgx.Tx
	issuer, card string
}

// creation returns the CREATION that bars others, the nil id when none does.
func (g cardGuard) creation(ctx context.Context) (id uuid.UUID, err error) {
	err = g.tx.QueryRow(ctx, `
		SELECT creation_order_id FROM card_guard
		WHERE issuer_id = $1 AND card_id = $2 AND creation_order_id IS NOT NULL AND creation_until > now()`, g.issuer, g.card).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return uuid.Nil, nil
	}
	if err != nil {
		return uuid.Nil, fmt.Errorf("reading the duplicate guard: %w", err)
	}
	return id, nil
}
