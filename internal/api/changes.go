package api

import (
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/google/uuid"

	"cardorder/internal/order"
	"cardorder/internal/store"
)

// changeView is a change of an order as JSON. The new address is not in it.
type changeView struct {
	ID      string             `json:"id"`
	OrderID string             `json:"orderId"`
	Type    order.ChangeType   `json:"type"`
	State   order.ChangeState  `json:"state"`
	Reason  order.ChangeReason `json:"reason,omitempty"`
	// MayStillArrive: the card of a cancel may, for nobody is certain that it was stopped.
	MayStillArrive bool       `json:"mayStillArrive,omitempty"`
	OperationID    string     `json:"operationId,omitempty"`
	CreatedAt      time.Time  `json:"createdAt"`
	CreatedBy      string     `json:"createdBy"`
	UpdatedAt      time.Time  `json:"updatedAt"`
	SentAt         *time.Time `json:"sentAt,omitempty"`
	ExpiresAt      *time.Time `json:"expiresAt,omitempty"`
}

func viewChange(c *store.Change) changeView {
	return changeView{
		ID: c.ID.String(), OrderID: c.OrderID.String(), Type: c.Type, State: c.State, Reason: c.Reason,
		MayStillArrive: order.MayStillArrive(c.Type, c.State, c.Reason), OperationID: c.OperationID,
		CreatedAt: c.CreatedAt, CreatedBy: c.CreatedBy, UpdatedAt: c.UpdatedAt, SentAt: c.SentAt, ExpiresAt: c.ExpiresAt,
	}
}

// placeChange has an order changed: 201 for a new change, 200 for a repeated request.
func (s *server) placeChange(w http.ResponseWriter, r *http.Request) error {
	issuer := chi.URLParam(r, "issuerId")
	id, err := orderID(r)
	if err != nil {
		return err
	}
	placement, err := s.readChange(r, issuer, id)
	if err != nil {
		return err
	}
	c, replayed, err := s.Store.PlaceChange(r.Context(), placement)
	if err != nil {
		return err
	}
	annotate(r.Context(), slog.String("changeId", c.ID.String()), slog.String("changeType", string(c.Type)), slog.Bool("replayed", replayed))
	w.Header().Set("Location", "/v1/issuers/"+url.PathEscape(issuer)+"/orders/"+c.OrderID.String()+"/changes/"+c.ID.String())
	writeJSON(w, created(w, replayed), viewChange(c))
	return nil
}

// readChange reads a change of an order and everything that is wrong with it by itself.
// The order is read first, for its card product has a say in where it may be sent to.
func (s *server) readChange(r *http.Request, issuer string, id uuid.UUID) (p store.ChangePlacement, err error) {
	rules := s.Rules(issuer)
	p.Action = store.Action{IssuerID: issuer, OrderID: id, Actor: caller(r.Context()).Name}
	key, wrong := requiredKey(r, rules.Guard, "a change needs a key, by which a repetition is recognised")
	p.IdempotencyKey = key
	if _, ok := readIfMatch(r); !ok {
		wrong = append(wrong, wrongIfMatch)
	}
	buffer := takeOrderBody()
	defer buffer.release()
	text, err := readJSON(r, buffer)
	if err != nil {
		return p, err
	}
	o, err := s.Store.Order(r.Context(), issuer, id)
	if err != nil {
		return p, err
	}
	p.Request, p.Faults = order.DecodeChange(text, rules, order.ChangedOrder{CardProductID: o.CardProductID, Shipped: o.Terms.Shipment != nil})
	if len(wrong) > 0 {
		return p, invalid(append(wrong, bodyFaults(p.Faults)...)...)
	}
	p.Version, err = s.wantedVersion(r, issuer, id)
	if errors.Is(err, store.ErrVersion) {
		p.Version, err = noVersion, nil // a repetition is still a repetition
	}
	return p, err
}

// noVersion is one that no order has.
const noVersion = -1

func (s *server) listChanges(w http.ResponseWriter, r *http.Request) error {
	id, err := orderID(r)
	if err != nil {
		return err
	}
	q := newQuery(r)
	limit, before := q.page()
	if err := q.err(); err != nil {
		return err
	}
	// One more tells whether there is a next page.
	changes, err := s.Store.Changes(r.Context(), chi.URLParam(r, "issuerId"), id, before, limit+1)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, pageOf(changes, limit, viewChange, func(c *store.Change) uuid.UUID { return c.ID }))
	return nil
}

func (s *server) getChange(w http.ResponseWriter, r *http.Request) error {
	id, err := orderID(r)
	if err != nil {
		return err
	}
	// What is no id is the nil id, which the order does not have, if there is such an order.
	changeID, _ := parseID(chi.URLParam(r, "changeId"))
	c, err := s.Store.Change(r.Context(), chi.URLParam(r, "issuerId"), id, changeID)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, viewChange(c))
	return nil
}

func changeConflict(e *store.ChangeConflictError) *problem {
	p := newProblem(http.StatusConflict, "change-pending", "Another change waits to be sent",
		"D1 is told of one change of an order after the other; a cancel goes first. Wait until that one is sent. Nothing was changed.")
	if e.Kind == store.ContentDiffers {
		p = newProblem(http.StatusUnprocessableEntity, "idempotency-conflict", "The key belongs to another change",
			"A change with this Idempotency-Key exists, and it was another one or of another order.")
	}
	p.ChangeID = e.ChangeID.String()
	return p
}
