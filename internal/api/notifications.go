package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"

	"cardorder/internal/d1client"
	"cardorder/internal/store"
)

// maxNotificationBody is the largest notification taken, in bytes.
const maxNotificationBody = 32 << 20

var notificationOutcomes = []store.Outcome{
	store.OutcomeApplied, store.OutcomeParked, store.OutcomeUnapplied, store.OutcomeIgnored, store.OutcomeRepeated,
}

// Notifications is D1's side of the API.
type Notifications struct {
	*server
	tokens *tokens
	wake   chan struct{}
}

// NewNotifications makes it. Handler serves it and Run works beside it.
func NewNotifications(cfg Config) *Notifications {
	return &Notifications{
		server: newServer(cfg),
		tokens: &tokens{keys: cfg.TokenKeys, issuers: cfg.Issuers, now: time.Now},
		wake:   make(chan struct{}, 1),
	}
}

// Handler serves D1: the token endpoint and the notifications.
func (n *Notifications) Handler() http.Handler {
	r := newRouter("notifications", n.Config)
	r.Post("/authz/d1/v1/oauth2/token", n.tokens.grant)
	r.Post("/notifications/d1/v2/issuers/{issuerId}/cards", n.receive)
	return r
}

// receive stores what D1 sends. 204 means: stored. A 4xx is only for what can
// never be right, since D1 may not send it again after one; what is merely not
// understood is kept.
func (n *Notifications) receive(w http.ResponseWriter, r *http.Request) {
	issuerID := chi.URLParam(r, "issuerId")
	issuer := n.issuers[issuerID]
	if issuer == nil {
		writeD1Error(w, http.StatusNotFound, "unknown issuer")
		return
	}
	token, _ := bearer(r)
	if err := n.tokens.verify(token, issuerID); err != nil {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	annotate(r.Context(), slog.String("issuerId", issuerID))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxNotificationBody))
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			writeD1Error(w, http.StatusRequestEntityTooLarge, "the body is too large")
			return
		}
		writeD1Error(w, http.StatusBadRequest, "the body ended too early")
		return
	}
	elements, ok := split(body)
	if !ok {
		writeD1Error(w, http.StatusBadRequest, "the body is not JSON")
		return
	}
	list := make([]store.Notification, len(elements))
	for i, raw := range elements {
		list[i] = n.parse(issuer, raw, callersCorrelationID(r))
	}
	outcomes, err := n.Store.Receive(r.Context(), issuerID, list)
	if err != nil {
		n.Log.Error("storing notifications failed", "correlationId", correlationID(r.Context()), "issuerId", issuerID, "error", err)
		writeD1Error(w, http.StatusServiceUnavailable, "not stored, please send again")
		return
	}
	counts := make(map[string]int)
	for _, outcome := range outcomes {
		n.Metrics.notifications.WithLabelValues(issuerID, string(outcome)).Inc()
		counts[string(outcome)]++
	}
	annotate(r.Context(), slog.Any("notifications", counts))
	w.WriteHeader(http.StatusNoContent)
}

// writeD1Error answers in the form that D1 expects.
func writeD1Error(w http.ResponseWriter, status int, text string) {
	writeJSON(w, status, map[string]string{"error": text})
}

// split takes a notification apart into its operations. JSON of any other
// shape is one element, kept as it is. ok is false for what is not JSON.
func split(body []byte) (elements []json.RawMessage, ok bool) {
	if !json.Valid(body) {
		return nil, false
	}
	var notification struct {
		Operations []json.RawMessage `json:"operations"`
	}
	if json.Unmarshal(body, &notification) != nil || notification.Operations == nil {
		return []json.RawMessage{body}, true
	}
	return notification.Operations, true
}

// parse reads what can be read of one operation; what cannot, is left empty.
func (n *Notifications) parse(issuer *Issuer, raw []byte, correlation string) store.Notification {
	note := store.Notification{Raw: raw, Content: content(raw), CorrelationID: correlation}
	op, err := d1client.ParseOperation(raw)
	if err != nil {
		return note
	}
	note.Operation, note.OperationID, note.CardID = op.Operation, op.OperationID, op.CardID
	note.IssuerRequestID, note.InputFileName, note.StartTime = op.IssuerRequestID, op.InputFileName, op.StartTime
	note.Report = op.Report(issuer.OnHoldStatuses)
	s := op.Details.Shipment
	note.Shipment = store.ShipmentUpdate{
		TrackingNumber: s.TrackingNumber, Carrier: s.Carrier, Status: s.Status, TrackingURL: s.TrackingURL,
	}
	return note
}

// content is the form by which a repeat is recognised: the same members and
// values, whatever their order and spacing. D1's operationId stays the same
// through all steps of an order, so it cannot serve.
func content(raw []byte) []byte {
	var value any
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	if dec.Decode(&value) != nil {
		return raw
	}
	canonical, err := json.Marshal(value)
	if err != nil {
		return raw
	}
	return canonical
}

// Wake makes Run look at the parked notifications now. It never blocks.
func (n *Notifications) Wake() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// sweepEvery is how often parked notifications are looked for.
const sweepEvery = 2 * time.Second

// Run lets parked notifications find their orders, until ctx is cancelled.
func (n *Notifications) Run(ctx context.Context) {
	for {
		timer := time.NewTimer(sweepEvery/2 + rand.N(sweepEvery))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-n.wake:
			timer.Stop()
		case <-timer.C:
		}
		applied, err := n.Store.ApplyParked(ctx, func(issuer string, raw []byte, correlation string) store.Notification {
			if n.issuers[issuer] == nil {
				return store.Notification{} // no longer configured: it stays parked
			}
			return n.parse(n.issuers[issuer], raw, correlation)
		})
		if err != nil && ctx.Err() == nil {
			n.Log.Error("applying parked notifications failed", "error", err)
		}
		if applied > 0 {
			n.Log.Info("parked notifications found their orders", "count", applied)
		}
	}
}
