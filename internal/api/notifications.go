package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
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
	d1   *d1Side
	wake chan []int64
}

// NewNotifications makes it. Handler serves it and Run works beside it.
func NewNotifications(cfg Config) *Notifications {
	return &Notifications{
		server: newServer(cfg),
		d1:     newD1Side(cfg),
		wake:   make(chan []int64, 64),
	}
}

// Handler serves D1: the token endpoint and the notifications.
func (n *Notifications) Handler() http.Handler {
	r := newRouter("notifications", n.Config)
	r.Post("/authz/d1/v1/oauth2/token", n.d1.grant)
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
	if !n.d1.admit(w, r, issuer) {
		return
	}
	annotate(r.Context(), slog.String("issuerId", issuerID))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxNotificationBody))
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			writeD1Error(w, http.StatusRequestEntityTooLarge, "the body is too large")
			return
		}
		// A slow or broken network is nothing that can never be right.
		writeD1Error(w, http.StatusServiceUnavailable, "the body ended too early, please send again")
		return
	}
	if !json.Valid(body) {
		writeD1Error(w, http.StatusBadRequest, "the body is not JSON")
		return
	}
	if err := n.store(r, issuer, body); err != nil {
		n.Log.Error("storing notifications failed", "correlationId", correlationID(r.Context()), "issuerId", issuerID, "error", err)
		writeD1Error(w, http.StatusServiceUnavailable, "not stored, please send again")
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

const (
	// receiveChunk is how many operations are stored in one transaction: it bounds
	// for how long their orders stay locked.
	receiveChunk = 100
	// receiveTimeout bounds the storing of one call. It goes on when D1 hangs up: D1
	// would only send the same again.
	receiveTimeout = 50 * time.Second
)

// store stores a notification, chunk by chunk. When a later chunk fails, D1 sends
// all of it again, and what was stored is recognised.
func (n *Notifications) store(r *http.Request, issuer *Issuer, body []byte) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), receiveTimeout)
	defer cancel()
	sender := callersCorrelationID(r, n.guard)
	counts := make(map[string]int)
	defer func() { annotate(r.Context(), slog.Any("notifications", counts)) }()
	for chunk := range slices.Chunk(operations(body), receiveChunk) {
		list := make([]store.Notification, len(chunk))
		for i, raw := range chunk {
			list[i] = n.parse(issuer, raw, sender)
		}
		outcomes, err := n.Store.Receive(ctx, issuer.ID, list)
		if err != nil {
			return err
		}
		for _, outcome := range outcomes {
			n.Metrics.notifications.WithLabelValues(issuer.ID, string(outcome)).Inc()
			counts[string(outcome)]++
		}
	}
	return nil
}

// writeD1Error answers in the form that D1 expects.
func writeD1Error(w http.ResponseWriter, status int, text string) {
	writeJSON(w, status, map[string]string{"error": text})
}

// operations takes a notification apart into its operations. JSON of any other
// shape is one element, kept as it is. What stands in the list more than once is
// taken once.
func operations(body []byte) []json.RawMessage {
	var notification struct {
		Operations []json.RawMessage `json:"operations"`
	}
	if json.Unmarshal(body, &notification) != nil || notification.Operations == nil {
		return []json.RawMessage{body}
	}
	seen := make(map[[sha256.Size]byte]bool)
	return slices.DeleteFunc(notification.Operations, func(raw json.RawMessage) bool {
		digest := sha256.Sum256(raw)
		again := seen[digest]
		seen[digest] = true
		return again
	})
}

// parse reads what can be read of one operation; what cannot, is left empty.
func (n *Notifications) parse(issuer *Issuer, raw []byte, correlation string) store.Notification {
	note := store.Notification{Raw: raw, Content: content(raw), CorrelationID: correlation}
	op, err := d1client.ParseOperation(raw)
	if err != nil {
		return note
	}
	note.Operation, note.OperationID, note.CardID = op.Operation, op.OperationID, op.CardID
	note.IssuerRequestID, note.NotByCard, note.StartTime = op.IssuerRequestID, op.NotByCard, op.StartTime
	note.Status = op.Status
	switch op.Operation {
	case store.OperationProduce:
		note.Evidence = op.Report(issuer.Vocabulary)
	case store.OperationTracking:
		note.Evidence = op.Tracking(issuer.Vocabulary)
	}
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

// Wake makes Run try the given stored notifications now. It never blocks: a sweep
// finds them too, only later.
func (n *Notifications) Wake(ids []int64) {
	select {
	case n.wake <- ids:
	default:
	}
}

// sweepEvery is how often stored notifications that wait are looked for.
const sweepEvery = 2 * time.Second

// Run lets stored notifications that wait find their orders, until ctx is cancelled.
func (n *Notifications) Run(ctx context.Context) {
	for {
		var ids []int64
		timer := time.NewTimer(sweepEvery/2 + rand.N(sweepEvery))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case ids = <-n.wake:
			timer.Stop()
		case <-timer.C:
		}
		for more := true; more && ctx.Err() == nil; {
			more = n.sweep(ctx, ids)
			select {
			case ids = <-n.wake: // these are not to wait behind a backlog
				more = true
			default:
				ids = nil
			}
		}
	}
}

// sweep tries waiting notifications and tells whether there may be more.
func (n *Notifications) sweep(ctx context.Context, ids []int64) (more bool) {
	applied, more, err := n.Store.Sweep(ctx, ids, func(issuer string, raw []byte, correlation string) store.Notification {
		if n.issuers[issuer] == nil {
			return store.Notification{} // no longer configured: it waits
		}
		return n.parse(n.issuers[issuer], raw, correlation)
	})
	if err != nil && ctx.Err() == nil {
		n.Log.Error("applying stored notifications failed", "error", err)
	}
	if applied > 0 {
		n.Log.Info("stored notifications found their orders", "count", applied)
	}
	return more
}
