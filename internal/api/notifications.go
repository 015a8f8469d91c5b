package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"hash/maphash"
	"io"
	"iter"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/go-chi/chi/v5"

	"cardorder/internal/d1client"
	"cardorder/internal/order"
	"cardorder/internal/store"
)

// maxNotificationBody is the largest notification taken, in bytes.
const maxNotificationBody = 32 << 20

var notificationOutcomes = []store.Outcome{
	store.OutcomeApplied, store.OutcomeParked, store.OutcomeUnapplied, store.OutcomeIgnored, store.OutcomeRepeated, store.OutcomeForeign,
}

// Notifications is D1's side of the API.
type Notifications struct {
	*server
	d1    *d1Side
	wake  chan []int64
	large chan struct{} // bodies in memory that are large
}

// NewNotifications makes it. Handler serves it and Run works beside it.
func NewNotifications(cfg Config) *Notifications {
	return &Notifications{
		server: newServer(cfg),
		d1:     newD1Side(cfg),
		wake:   make(chan []int64, 64),
		large:  make(chan struct{}, largeNotifications),
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
	body, done, err := n.readNotification(w, r)
	defer done()
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
	// The answer may take as long as the storing, however long the body took.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(receiveTimeout + 10*time.Second)) // not every writer has one
	if err := n.store(r, issuer, body); err != nil {
		n.Log.Error("storing notifications failed", "correlationId", correlationID(r.Context()), "issuerId", issuerID, "error", err)
		writeD1Error(w, http.StatusServiceUnavailable, "not stored, please send again")
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

const (
	// smallNotification is up to how many bytes a body needs no leave to be in memory.
	smallNotification = 1 << 20
	// largeNotifications is how many larger ones may be in memory at once; others wait
	// with what they have sent so far.
	largeNotifications = 2
)

// readNotification reads a body. It may be used until done is called.
func (n *Notifications) readNotification(w http.ResponseWriter, r *http.Request) (body []byte, done func(), err error) {
	done = func() {}
	if r.ContentLength > maxNotificationBody {
		return nil, done, &http.MaxBytesError{Limit: maxNotificationBody}
	}
	in := http.MaxBytesReader(w, r.Body, maxNotificationBody)
	var b bytes.Buffer
	if r.ContentLength > 0 {
		b.Grow(int(min(r.ContentLength, smallNotification)) + bytes.MinRead)
	}
	if _, err := io.CopyN(&b, in, smallNotification); err != nil {
		if errors.Is(err, io.EOF) {
			err = nil // it is all there
		}
		return b.Bytes(), done, err
	}
	select {
	case n.large <- struct{}{}:
		done = func() { <-n.large }
	case <-r.Context().Done():
		return nil, done, r.Context().Err()
	}
	if rest := r.ContentLength - int64(b.Len()); rest > 0 {
		b.Grow(int(rest) + bytes.MinRead)
	}
	_, err = b.ReadFrom(in)
	return b.Bytes(), done, err
}

const (
	// receiveChunk is how many operations are stored in one transaction: it bounds
	// for how long their orders stay locked.
	receiveChunk = 100
	// receiveAtOnce is how many chunks of one call are stored at the same time.
	receiveAtOnce = 4
	// receiveTimeout bounds the storing of one call. It goes on when D1 hangs up: D1
	// would only send the same again.
	receiveTimeout = 50 * time.Second
)

// store stores a notification, chunk by chunk. When one of them fails, D1 sends all of
// it again, and what was stored is recognised.
func (n *Notifications) store(r *http.Request, issuer *Issuer, body []byte) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), receiveTimeout)
	defer cancel()
	call := &receivedCall{notifications: n, issuer: issuer, sender: callersCorrelationID(r, n.guard), counts: make(map[string]int)}
	defer func() { annotate(r.Context(), slog.Any("notifications", call.counts)) }()
	return call.store(ctx, body)
}

// receivedCall is the storing of one call.
type receivedCall struct {
	notifications *Notifications
	issuer        *Issuer
	sender        string // the caller's correlation id

	mu     sync.Mutex
	counts map[string]int // of operations, by outcome
	err    error          // the first
}

func (c *receivedCall) store(ctx context.Context, body []byte) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var storing sync.WaitGroup
	free := make(chan struct{}, receiveAtOnce)
	var last [][]byte
	for chunk := range chunks(body) {
		if last != nil {
			elements := last
			free <- struct{}{}
			storing.Go(func() {
				defer func() { <-free }()
				if !c.keep(ctx, elements) {
					cancel()
				}
			})
		}
		if last = chunk; ctx.Err() != nil {
			break
		}
	}
	if last != nil && ctx.Err() == nil {
		c.keep(ctx, last) // here: most calls have no other
	}
	storing.Wait()
	if c.err == nil {
		return ctx.Err()
	}
	return c.err
}

// keep stores some operations and tells whether it could.
func (c *receivedCall) keep(ctx context.Context, elements [][]byte) bool {
	n := c.notifications
	list := make([]store.Notification, len(elements))
	for i, raw := range elements {
		list[i] = n.parse(c.issuer, raw, c.sender)
	}
	outcomes, err := n.Store.Receive(ctx, c.issuer.ID, list)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		if c.err == nil {
			c.err = err
		}
		return false
	}
	for i, outcome := range outcomes {
		n.Metrics.notifications.WithLabelValues(c.issuer.ID, string(outcome)).Inc()
		if outcome == store.OutcomeIgnored {
			n.Metrics.ignored.WithLabelValues(c.issuer.ID, operationLabel(list[i].Operation)).Inc()
		}
		if outcome != store.OutcomeRepeated && order.HasUnknownStatus(list[i].Evidence) {
			n.Metrics.unknown.WithLabelValues(c.issuer.ID).Inc()
		}
		c.counts[string(outcome)]++
	}
	return true
}

// d1Operations are D1's kinds of operations that a metric has a label for; OperationNone
// is for what names none.
var d1Operations = []string{
	"CREATE", "REGISTER", "ACTIVATE", "SUSPEND", "RESUME", "DELETE", "DIGITIZE", "RENEW", "REPLACE", "CLICK_TO_PAY_ENROLMENT",
	store.OperationProduce, store.OperationChange, store.OperationTracking, operationNone, operationOther,
}

const (
	operationNone  = "none"
	operationOther = "other"
)

// operationLabel keeps D1 from inventing label values.
func operationLabel(operation string) string {
	switch {
	case operation == "":
		return operationNone
	case slices.Contains(d1Operations, operation):
		return operation
	}
	return operationOther
}

// writeD1Error answers in the form that D1 expects.
func writeD1Error(w http.ResponseWriter, status int, text string) {
	writeJSON(w, status, map[string]string{"error": text})
}

// chunks takes a notification apart into its operations, some at a time. JSON of any
// other shape is one element, kept as it is. What stands in one chunk more than once is
// taken once.
func chunks(body []byte) iter.Seq[[][]byte] {
	return func(yield func([][]byte) bool) {
		var chunk [][]byte
		seen := make(map[uint64][]byte, receiveChunk)
		seed := maphash.MakeSeed()
		goOn := true
		ok := d1client.Notified(body, func(element []byte) bool {
			sum := maphash.Bytes(seed, element)
			if other, ok := seen[sum]; ok && bytes.Equal(other, element) {
				return true
			}
			if len(chunk) == receiveChunk {
				goOn = yield(chunk)
				chunk = nil
				clear(seen)
			}
			seen[sum] = element
			chunk = append(chunk, element)
			return goOn
		})
		switch {
		case !ok:
			yield([][]byte{body})
		case goOn && len(chunk) > 0:
			yield(chunk)
		}
	}
}

// parse reads what can be read of one operation, which must be valid JSON; what cannot, is
// left empty. One on which a bug panics waits, for all that is known of it may be about an
// order: it must end neither the process, again at each start, nor the others of its call.
func (s *server) parse(issuer *Issuer, raw []byte, correlation string) (note store.Notification) {
	defer func() {
		if p := recover(); p != nil {
			s.Log.Error("panic while reading a notification", "panic", p, "stack", string(debug.Stack()))
			note = store.Notification{Raw: raw, Content: raw, Operation: store.OperationProduce, CorrelationID: correlation}
		}
	}()
	note = store.Notification{Raw: raw, Content: d1client.Canonical(raw), CorrelationID: correlation}
	op, err := d1client.ParseElement(raw)
	if err != nil {
		return note
	}
	op = op.WithoutCardNumbers(s.Rules(issuer.ID).Guard)
	note.Operation, note.OperationID, note.CardID = op.Operation, op.OperationID, op.CardID
	note.IssuerRequestID, note.NotByCard, note.StartTime = op.IssuerRequestID, op.NotByCard, op.StartTime
	note.Status = op.Status
	switch op.Operation {
	case store.OperationProduce:
		note.Evidence = op.Report(issuer.Vocabulary)
	case store.OperationTracking:
		note.Evidence = op.Tracking(issuer.Vocabulary)
	}
	parcel := op.Details.Shipment
	note.Shipment = store.ShipmentUpdate{
		TrackingNumber: parcel.TrackingNumber, Carrier: parcel.Carrier, Status: parcel.Status, TrackingURL: parcel.TrackingURL,
	}
	return note
}

// parseStored reads a stored notification. One of an issuer that is no longer configured
// says nothing: it waits.
func (s *server) parseStored(issuer string, raw []byte, correlation string) store.Notification {
	if s.issuers[issuer] == nil || !json.Valid(raw) { // or it could not be opened
		return store.Notification{}
	}
	return s.parse(s.issuers[issuer], raw, correlation)
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

// forgetEvery is how often notifications are deleted that have been kept long enough.
const forgetEvery = 10 * time.Minute

// Run lets stored notifications that wait find their orders, and deletes those that are
// about none, until ctx is cancelled.
func (n *Notifications) Run(ctx context.Context) {
	forget := time.NewTicker(forgetEvery)
	defer forget.Stop()
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
		case <-forget.C:
			timer.Stop()
			n.forget(ctx)
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

// forget deletes what has been kept long enough, in small steps.
func (n *Notifications) forget(ctx context.Context) {
	for more := true; more && ctx.Err() == nil; {
		var err error
		if more, err = n.Store.ForgetIgnored(ctx); err != nil && ctx.Err() == nil {
			n.Log.Error("deleting old notifications failed", "error", err)
		}
	}
}

// sweep tries waiting notifications and tells whether there may be more.
func (n *Notifications) sweep(ctx context.Context, ids []int64) (more bool) {
	applied, more, err := n.Store.Sweep(ctx, ids, n.parseStored)
	if err != nil && ctx.Err() == nil {
		n.Log.Error("applying stored notifications failed", "error", err)
	}
	if applied > 0 {
		n.Log.Info("stored notifications found their orders", "count", applied)
	}
	return more
}
