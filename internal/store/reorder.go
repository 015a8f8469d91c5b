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
	if r.hopeless() {
		return nil, r.Faults
	}
	e, err := s.newEntry(r.Acceptance)
	if err != nil {
		return nil, err
	}
	detail, err := json.Marshal(reorderDetail{e.order.ID, r.Reason})
	if err != nil {
		return nil, fmt.Errorf("writing the detail of a reorder: %w", err)
	}
	var locked map[orderKey]*lockedOrder
	var refusal error
	err = s.inTx(ctx, func(tx pgx.Tx) (err error) {
		key := orderKey{r.Action.IssuerID, r.OrderID}
		if locked, err = lockOrders(ctx, tx, []orderKey{key}); err != nil {
			return err
		}
		first := locked[key]
		if first == nil {
			return ErrNotFound
		}
		// What is refused is no new order, but may have led to one before.
		if refusal = r.refusal(first); refusal != nil {
			e.Faults = append(slices.Clip(r.Faults), order.Fault{Code: order.CodeNotAllowed, Detail: refusal.Error()})
		} else {
			e.Faults = r.Faults
		}
		if err := s.insertInstead(ctx, tx, e, first); err != nil || e.verdict != verdictAccepted {
			return err
		}
		w := advances{store: s}
		w.advance(first, Cause{Kind: CauseRequest, Actor: r.Actor, Action: EventReordered, Detail: detail}, order.Details{})
		var b pgx.Batch
		w.queue(&b)
		return send(ctx, tx, &b)
	})
	if err != nil {
		return nil, fmt.Errorf("ordering again: %w", err)
	}
	if e.verdict == verdictRefused && refusal != nil {
		return nil, refusal
	}
	s.announce([]*entry{e})
	s.logChanges(ctx, locked)
	return s.accepted(ctx, e)
}

// refusal tells why the first order allows none in its place, or nil.
func (r *Reorder) refusal(first *lockedOrder) error {
	switch {
	case r.Version != 0 && r.Version != first.state.Version:
		return ErrVersion
	case !slices.Contains(reorderable, first.state.Status):
		return ErrNotReorderable
	}
	return nil
}

// insertInstead is insert for an order that stands in for another: a CREATION that this one
// made does not bar it.
func (s *Store) insertInstead(ctx context.Context, tx pgx.Tx, e *entry, first *lockedOrder) error {
	guard := cardGuard{tx: tx, issuer: first.issuer, card: first.cardID}
	creation, err := guard.creation(ctx)
	if err != nil {
		return err
	}
	e.recreates = creation == first.id
	if err := s.insert(ctx, tx, []*entry{e}); err != nil || e.verdict != verdictAccepted || !e.recreates || e.overrides() {
		return err
	}
	// The card's guard is locked only now: another one may have been made at this moment.
	if creation, err = guard.creation(ctx); err == nil && creation != uuid.Nil && creation != first.id {
		err = &ConflictError{DuplicateOrder, creation}
	}
	return err
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
