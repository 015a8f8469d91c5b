package outbox

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"cardorder/internal/d1client"
	"cardorder/internal/order"
	"cardorder/internal/pgtest"
	"cardorder/internal/store"
)

// Whatever happens in whatever order to orders, workers, D1, people and the database,
// what has to be true is true after every step, and in the end each order is made once
// or says what is the matter.
//
// The database is real and so are the decisions; workers and D1 are played here, one
// step at a time, and time is made to pass by setting back what the database remembers.
func TestAnyOrderOfEvents(t *testing.T) {
	t.Parallel()
	// Each step asks the database some times; more are tried with -rapid.checks.
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		if err := f.Value.Set("20"); err != nil {
			t.Fatal(err)
		}
	}
	keyset, err := store.NewSealingKeyset()
	if err != nil {
		t.Fatal(err)
	}
	sealer, err := store.NewSealer(keyset)
	if err != nil {
		t.Fatal(err)
	}
	url := pgtest.New(t)
	st, err := store.Open(t.Context(), store.Config{URL: url, Seal: sealer, HashKeys: store.HashKeys{Current: make([]byte, 32)}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(st.Close)
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	if _, err := st.CheckTimeline(t.Context(), worldLease); err != nil {
		t.Fatal(err)
	}
	var worlds atomic.Int64
	rapid.Check(t, func(rt *rapid.T) {
		w := &anyWorld{
			T: rt, ctx: t.Context(), st: st, conn: conn, policy: Policy{StopAfterRefusals: 3}.withDefaults(),
			issuer: fmt.Sprintf("W%09d", worlds.Add(1)), begun: time.Now(),
			idempotent: below(rt, "idempotent", 4) == 0, named: below(rt, "named", 5) > 0,
			lag:    choose(rt, "lag", 0, time.Minute, 4*time.Minute, 4*time.Minute, 20*time.Minute),
			parsed: make(map[string]store.Notification), exempt: make(map[string]bool),
		}
		defer w.exec(`DELETE FROM outbox`) // the next world is to itself
		actions := []struct {
			weight int
			do     func(*rapid.T)
		}{
			{3, w.accept}, {2, w.upload}, {6, w.claim}, {4, w.begin}, {5, w.arrive}, {5, w.answer}, {5, w.work}, {3, w.overtake}, {1, w.probe},
			{2, w.crash}, {1, w.giveBack}, {3, w.produce}, {2, w.notify}, {1, w.sweep},
			{1, w.refresh}, {2, w.retry}, {3, w.act}, {1, w.pause}, {1, w.resume}, {1, w.check}, {6, w.pass}, {2, w.history},
			{4, w.change}, {2, w.decideChange}, {2, w.tellOfChange}, {1, w.expire},
			{2, w.hold}, {2, w.release}, {1, w.note},
		}
		var weighted []func(*rapid.T)
		for _, a := range actions {
			weighted = append(weighted, slices.Repeat([]func(*rapid.T){a.do}, a.weight)...)
		}
		for range worldSteps {
			weighted[below(rt, "action", len(weighted))](rt)
			w.invariants()
		}
		w.settle()
	})
}

const (
	worldLease = time.Minute
	worldSteps = 50
)

// anyWorld is a database, its workers, a bureau, and the people around them.
type anyWorld struct {
	*rapid.T
	ctx    context.Context
	st     *store.Store
	conn   *pgx.Conn
	policy Policy
	issuer string
	begun  time.Time
	passed time.Duration // time that was made to pass

	idempotent bool          // a repeated issuerRequestId makes no second card
	named      bool          // D1 repeats issuerRequestId
	lag        time.Duration // until D1 shows an order that it took

	orders  []placed
	batches []uuid.UUID
	workers []*worker
	made    []*made
	wanted  []*wanted
	parsed  map[string]store.Notification // by their bytes
	exempt  map[string]bool               // requests that D1 got in a history that was lost: it alone can tell
	names   int
}

type placed struct {
	id            uuid.UUID
	request, card string
}

// made is an operation of the bureau.
type made struct {
	id, request, card string
	at                time.Duration
	step              int // of steps
	failed            bool
	cancelled         bool // because it was asked to
}

var steps = []string{"CARD_PROD_REQUESTED", "DATA_PREPARED", "CARD_PROD_READY", "CARD_PROD_ONGOING", "CARD_PROD_DONE", "CARD_SHIPPED"}

// worker has claimed a message.
type worker struct {
	job
	at       time.Duration // before the claim, by its own clock
	inFlight bool          // bytes may leave
	done     *store.Completion
}

func (w *anyWorld) now() time.Duration { return w.passed + time.Since(w.begun) }

func (w *anyWorld) must(err error) {
	if err != nil {
		w.Helper()
		w.Fatal(err)
	}
}

func (w *anyWorld) exec(sql string, args ...any) {
	w.Helper()
	_, err := w.conn.Exec(w.ctx, sql, args...)
	w.must(err)
}

// pick draws one of a list that fits, if there is any.
func pick[T any](t *rapid.T, label string, list []T, fits func(T) bool) (T, bool) {
	var fitting []T
	for _, v := range list {
		if fits(v) {
			fitting = append(fitting, v)
		}
	}
	if len(fitting) == 0 {
		var none T
		return none, false
	}
	return fitting[below(t, label, len(fitting))], true
}

// below draws a number below n. Rapid's own numbers prefer the small ones: what comes
// later in a list would hardly ever happen.
func below(t *rapid.T, label string, n int) int {
	return rapid.Custom(func(t *rapid.T) int {
		v := 0
		for range 12 {
			v *= 2
			if rapid.Bool().Draw(t, "bit") {
				v++
			}
		}
		return v * n >> 12
	}).Draw(t, label)
}

func choose[T any](t *rapid.T, label string, list ...T) T { return list[below(t, label, len(list))] }

func anything[T any](T) bool { return true }

func (w *anyWorld) name(kind string) string {
	w.names++
	return fmt.Sprint(kind, "-", w.issuer, "-", w.names)
}

func (w *anyWorld) acceptance(t *rapid.T) store.Acceptance {
	card, request := choose(t, "card", "card-1", "card-2", "card-3"), w.name("request")
	r := &order.Request{
		CardID: card, Canonical: []byte(request), EndsAt: order.Shipped,
		Production: order.Production{
			ConsumerID: "consumer", CardProductID: "gold", IssuerRequestID: request, Channel: order.ChannelThales,
			Services: order.Services{Issuance: order.IssuanceReplacement, Delivery: "POST"}, EncryptedData: "a.b.c.d.e",
			Shipment: &order.Shipment{Type: order.ShipmentIndividual, DeliveryAddress: &order.Address{Line1: "1 Old Street", ZipCode: "1", City: "Lyon", CountryCode: "FR"}},
		},
	}
	if below(t, "override", 3) == 0 {
		r.DuplicateOverride = "wanted"
	}
	return store.Acceptance{IssuerID: w.issuer, Client: "test", Request: r}
}

func (w *anyWorld) accept(t *rapid.T) {
	if len(w.orders) > 6 {
		return
	}
	a := w.acceptance(t)
	accepted, err := w.st.Accept(w.ctx, a)
	if refused, _ := errors.AsType[*store.ConflictError](err); refused != nil {
		return
	}
	w.must(err)
	w.orders = append(w.orders, placed{accepted.Order.ID, a.Request.Production.IssuerRequestID, a.Request.CardID})
	w.Logf("accepted %s for %s", a.Request.Production.IssuerRequestID, a.Request.CardID)
}

func (w *anyWorld) upload(t *rapid.T) {
	if len(w.orders) > 6 {
		return
	}
	hold := below(t, "hold", 2) == 0
	b, _, err := w.st.OpenBatch(w.ctx, store.BatchUpload{IssuerID: w.issuer, Key: w.name("batch"), Client: "test", Format: "ndjson", Hold: hold})
	w.must(err)
	rows := make(map[string]string)
	for i := range 1 + below(t, "rows", 2) {
		_, err := b.Stored(w.ctx, int64(i+1), fmt.Append(nil, "row ", i))
		w.must(err)
		a := w.acceptance(t)
		rows[a.Request.Production.IssuerRequestID] = a.Request.CardID
		w.must(b.Accept(w.ctx, int64(i+1), a))
	}
	batch, err := b.Finish(w.ctx)
	w.must(err)
	w.batches = append(w.batches, batch.ID)
	results, err := w.st.BatchResults(w.ctx, w.issuer, batch.ID, store.RowAccepted, 0, 10)
	w.must(err)
	for _, r := range results {
		w.orders = append(w.orders, placed{*r.OrderID, r.IssuerRequestID, rows[r.IssuerRequestID]})
		w.Logf("uploaded %s for %s, held: %t", r.IssuerRequestID, rows[r.IssuerRequestID], hold)
	}
}

func (w *anyWorld) claim(t *rapid.T) {
	class := choose(t, "class", store.Classes...)
	at := w.now()
	messages, err := w.st.Claim(w.ctx, store.ClaimRequest{
		Lane: store.LaneOf(w.issuer), Class: class, Limit: 1 + below(t, "limit", 3), Lease: worldLease,
	})
	w.must(err)
	w.employ(at, messages)
}

func (w *anyWorld) probe(*rapid.T) {
	at := w.now()
	messages, err := w.st.ClaimProbe(w.ctx, store.LaneOf(w.issuer), worldLease)
	w.must(err)
	w.employ(at, messages)
}

func (w *anyWorld) employ(at time.Duration, messages []store.Message) {
	for _, m := range messages {
		if m.Err != nil {
			w.Fatal(m.Err)
		}
		w.workers = append(w.workers, &worker{job: job{Message: m}, at: at})
		w.Logf("claimed %s of %s, %s, maybe sent: %t, %s ago, negatives: %d", m.Kind, m.IssuerRequestID, m.Class, m.MaybeSent, m.SentAgo, m.Negatives)
	}
}

func (w *anyWorld) dismiss(gone *worker) {
	w.workers = slices.DeleteFunc(w.workers, func(x *worker) bool { return x == gone })
}

// leased tells whether a worker may begin, or go on, by its own clock.
func (w *anyWorld) leased(x *worker, need time.Duration) bool { return w.now()-x.at+need < worldLease }

// begin is the last look before the first byte.
func (w *anyWorld) begin(t *rapid.T) {
	x, ok := pick(t, "worker", w.workers, func(x *worker) bool { return !x.inFlight && x.done == nil })
	if !ok {
		return
	}
	held := w.leased(x, worldLease/2)
	if held && !x.asks() && (x.SentBefore || w.now()-x.at >= freshClaim) {
		var err error
		held, err = w.st.Holds(w.ctx, x.Message)
		w.must(err)
	}
	if !held {
		if w.leased(x, 0) {
			w.Logf("given back: %s", x.IssuerRequestID)
			w.must(w.st.Release(w.ctx, []store.Message{x.Message}))
		}
		w.dismiss(x)
		return
	}
	x.inFlight = true
	w.Logf("in flight: %s", x.IssuerRequestID)
}

// giveBack is what a worker does that is told to stop.
func (w *anyWorld) giveBack(t *rapid.T) {
	x, ok := pick(t, "worker", w.workers, func(x *worker) bool { return !x.inFlight && x.done == nil && w.leased(x, 0) })
	if !ok {
		return
	}
	w.must(w.st.Release(w.ctx, []store.Message{x.Message}))
	w.dismiss(x)
}

// crash forgets a worker; what it had under way may arrive or not.
func (w *anyWorld) crash(t *rapid.T) {
	x, ok := pick(t, "worker", w.workers, anything)
	if !ok {
		return
	}
	if x.inFlight && !x.asks() && w.leased(x, 0) && below(t, "arrives", 2) == 0 {
		if x.Kind == store.KindChange {
			w.takeChange(x.Message)
		} else {
			w.take(x.IssuerRequestID, x.CardID)
		}
	}
	w.dismiss(x)
}

// arrive is the call at D1, and what the worker makes of its answer.
func (w *anyWorld) arrive(t *rapid.T) {
	x, ok := pick(t, "worker", w.workers, func(x *worker) bool { return x.inFlight })
	if !ok {
		return
	}
	w.call(x, func() string {
		return choose(t, "answer", "taken", "taken", "taken", "taken", "nameless", "lost after", "lost after", "lost before", "refused", "403", "403", "404", "429", "409")
	})
}

func (w *anyWorld) call(x *worker, how func() string) {
	x.inFlight = false
	id, err := uuid.NewV7()
	w.must(err)
	attempt := store.Attempt{ID: id, StartedAt: time.Now()}
	var c store.Completion
	switch {
	case x.Kind == store.KindChange:
		c = w.sendChange(x, attempt, how())
	case x.asks():
		c = w.ask(x, attempt, how())
	default:
		kind := "late" // its deadline passed before anything arrived
		if w.leased(x, 0) {
			kind = how()
		}
		c = w.policy.submitted(x.Message, attempt, w.submit(x, kind))
	}
	c.Attempt.CorrelationID = id.String()
	x.done = &c
	w.Logf("called for %s: %s %s, evidence %T, next %+v", x.IssuerRequestID, c.Attempt.Kind, c.Attempt.Outcome, c.Evidence, c.Next)
}

func (w *anyWorld) submit(x *worker, kind string) d1client.Answer {
	reply := func(outcome d1client.Outcome, reason d1client.Reason, status int) d1client.Answer {
		return d1client.Answer{Outcome: outcome, Reply: d1client.Reply{Reason: reason, Status: status}}
	}
	switch kind {
	case "taken":
		a := reply(d1client.Taken, d1client.ReasonAccepted, 202)
		a.OperationID = w.take(x.IssuerRequestID, x.CardID).id
		return a
	case "nameless":
		w.take(x.IssuerRequestID, x.CardID)
		return reply(d1client.Taken, d1client.ReasonAcceptedWithoutID, 202)
	case "lost after":
		w.take(x.IssuerRequestID, x.CardID)
	case "409":
		return reply(d1client.Unknown, d1client.ReasonConflict, 409)
	case "429":
		return reply(d1client.NotTaken, d1client.ReasonRateLimited, 429)
	case "403":
		return reply(d1client.Refused, d1client.ReasonRefused, 403)
	case "404":
		return reply(d1client.Refused, d1client.ReasonRefused, 404)
	case "refused":
		a := reply(d1client.Refused, d1client.ReasonRefused, 400)
		a.HasErrorBody, a.ErrorCode = true, "FIELD_INVALID_VALUE"
		return a
	}
	return reply(d1client.Unknown, d1client.ReasonCut, 0)
}

// overtake lets the leases of workers run out while others take over.
func (w *anyWorld) overtake(t *rapid.T) {
	w.claim(t)
	w.begin(t)
	w.arrive(t)
	w.wait(2 * time.Minute)
	w.work(t)
}

// take makes a card, unless D1 knows the request and makes none twice.
func (w *anyWorld) take(request, card string) *made {
	for _, m := range w.made {
		if m.request == request && w.idempotent {
			return m
		}
	}
	m := &made{id: w.name("operation"), request: request, card: card, at: w.now()}
	w.made = append(w.made, m)
	w.Logf("%s is made for %s", m.id, request)
	return m
}

// shown is an operation at a step, as D1 tells of it now.
func (w *anyWorld) shown(m *made, step int, failed bool) d1client.Operation {
	op := d1client.Operation{
		OperationID: m.id, Operation: "PRODUCE", Status: "PENDING", CardID: m.card,
		StartTime: time.Now().Add(m.at - w.now()), Details: d1client.Details{Status: steps[step]},
	}
	if w.named {
		op.IssuerRequestID = m.request
	}
	switch {
	case failed:
		op.Status, op.Details.Status = "FAILED", "CARD_PROD_EXCEPTION"
	case step == len(steps)-1:
		op.Status = "SUCCESSFUL"
	}
	return op
}

func (w *anyWorld) ask(x *worker, attempt store.Attempt, kind string) store.Completion {
	a := d1client.StatusAnswer{Finding: d1client.Found, Reply: d1client.Reply{Reason: d1client.ReasonFound, Status: 200}}
	if kind == "lost before" || kind == "lost after" || kind == "429" {
		a = d1client.StatusAnswer{Reply: d1client.Reply{Reason: d1client.ReasonTimeout}}
		return w.policy.asked(x.Message, attempt, a, surroundings{})
	}
	var ids, requests []string
	for _, m := range w.made {
		if m.card == x.CardID && w.now()-m.at >= w.lag {
			a.Operations = append(a.Operations, w.shown(m, m.step, m.failed))
			ids, requests = append(ids, m.id), append(requests, a.Operations[len(a.Operations)-1].IssuerRequestID)
		}
	}
	var around surroundings
	var err error
	if len(ids) == 0 && kind == "404" {
		a.Finding, around.proven = d1client.CardNotFound, true
	}
	around.owners, err = w.st.Owners(w.ctx, w.issuer, ids, requests)
	w.must(err)
	around.sibling, around.parked, err = w.st.Doubts(w.ctx, x.Message)
	w.must(err)
	return w.policy.asked(x.Message, attempt, a, around)
}

// answer stores what came of calls, some of which may have lost their claims.
func (w *anyWorld) answer(t *rapid.T) {
	n := 1 + below(t, "completions", 3)
	var list []store.Completion
	for range n {
		x, ok := pick(t, "worker", w.workers, func(x *worker) bool { return x.done != nil })
		if !ok {
			break
		}
		list = append(list, *x.done)
		w.dismiss(x)
	}
	for _, c := range list {
		w.Logf("answered for %s", c.Message.IssuerRequestID)
	}
	if len(list) != 1 {
		w.must(w.st.Complete(w.ctx, list))
		return
	}
	// A lost claim changes nothing, unless it tells of an operation.
	m := list[0].Message
	const all = `SELECT coalesce((SELECT claim_token = $2 FROM outbox WHERE id = $1), false),
		s.version || coalesce((SELECT m::text FROM outbox m WHERE id = $1), '') FROM order_state s WHERE s.order_id = $3`
	var held bool
	var before, after string
	w.must(w.conn.QueryRow(w.ctx, all, m.ID, m.Token, m.OrderID).Scan(&held, &before))
	w.must(w.st.Complete(w.ctx, list))
	w.must(w.conn.QueryRow(w.ctx, all, m.ID, m.Token, m.OrderID).Scan(new(bool), &after))
	told := len(list[0].Seen) > 0 || list[0].Change != nil && list[0].Change.Taken
	if !held && !told && before != after {
		w.Fatalf("a lost claim changed %s: %s, then %s", m.IssuerRequestID, before, after)
	}
}

// work is all that a worker does with a message, without a break.
func (w *anyWorld) work(t *rapid.T) {
	w.claim(t)
	w.begin(t)
	w.arrive(t)
	w.answer(t)
}

// produce is the bureau at work.
func (w *anyWorld) produce(t *rapid.T) {
	m, ok := pick(t, "operation", w.made, func(m *made) bool { return !m.failed && !m.cancelled && m.step < len(steps)-1 })
	if !ok {
		return
	}
	m.failed = below(t, "fails", 10) == 0
	m.step++
}

// notify tells of an operation at any step that it passed, in any order and again.
func (w *anyWorld) notify(t *rapid.T) {
	m, ok := pick(t, "operation", w.made, anything)
	if !ok {
		return
	}
	w.tell(m, below(t, "step", m.step+1), m.failed && below(t, "failure", 2) == 0)
}

func (w *anyWorld) tell(m *made, step int, failed bool) {
	op := w.shown(m, step, failed)
	text := fmt.Sprint(op.OperationID, op.Status, op.Details.Status)
	n := store.Notification{
		Raw: []byte(text), Content: []byte(text), Operation: op.Operation, OperationID: op.OperationID, CardID: op.CardID,
		IssuerRequestID: op.IssuerRequestID, StartTime: op.StartTime, Evidence: op.Report(order.Vocabulary{}),
	}
	w.parsed[text] = n
	w.Logf("told: %s of %s", text, m.request)
	_, err := w.st.Receive(w.ctx, w.issuer, []store.Notification{n})
	w.must(err)
}

func (w *anyWorld) sweep(*rapid.T) {
	_, _, err := w.st.Sweep(w.ctx, nil, func(issuer string, raw []byte, _ string) store.Notification {
		n := w.parsed[string(raw)]
		if issuer == w.issuer {
			for _, m := range w.made {
				if m.id == n.OperationID { // its time is told anew: the database's was set back
					n.StartTime = time.Now().Add(m.at - w.now())
				}
			}
		}
		return n
	})
	w.must(err)
}

func (w *anyWorld) refresh(t *rapid.T) {
	o, ok := pick(t, "order", w.orders, anything)
	if !ok {
		return
	}
	_, err := w.st.Refresh(w.ctx, store.Action{IssuerID: w.issuer, OrderID: o.id, Actor: "ada"})
	if !errors.Is(err, store.ErrNotSent) {
		w.must(err)
	}
}

func (w *anyWorld) retry(t *rapid.T) {
	o, ok := pick(t, "order", w.orders, anything)
	if !ok {
		return
	}
	r := store.Retry{Action: store.Action{IssuerID: w.issuer, OrderID: o.id, Actor: "ada"}}
	if below(t, "override", 2) == 0 {
		r.DuplicateOverride = "wanted"
	}
	_, err := w.st.Retry(w.ctx, r)
	w.Logf("retried %s: %v", o.request, err)
	if refused, _ := errors.AsType[*store.ConflictError](err); refused == nil && !errors.Is(err, store.ErrNotRetryable) {
		w.must(err)
	}
}

func (w *anyWorld) act(t *rapid.T) {
	b, ok := pick(t, "batch", w.batches, anything)
	if !ok {
		return
	}
	action := choose(t, "action", store.BatchHold, store.BatchRelease, store.BatchRelease, store.BatchCancel)
	counts, err := w.st.Act(w.ctx, w.issuer, b, action, "ada")
	w.Logf("%s a batch: %+v", action, counts)
	w.must(err)
}

// hold and release are what a person does to one order.
func (w *anyWorld) hold(t *rapid.T) {
	o, ok := pick(t, "order", w.orders, anything)
	if !ok {
		return
	}
	_, err := w.st.HoldOrder(w.ctx, store.Hold{Action: store.Action{IssuerID: w.issuer, OrderID: o.id, Actor: "ada"}})
	w.Logf("held %s: %v", o.request, err)
	if !errors.Is(err, store.ErrNotHoldable) {
		w.must(err)
	}
}

func (w *anyWorld) release(t *rapid.T) {
	o, ok := pick(t, "order", w.orders, anything)
	if !ok {
		return
	}
	h := store.Hold{Action: store.Action{IssuerID: w.issuer, OrderID: o.id, Actor: "ada"}}
	if below(t, "override", 2) == 0 {
		h.DuplicateOverride = "wanted"
	}
	_, err := w.st.ReleaseOrder(w.ctx, h)
	w.Logf("released %s: %v", o.request, err)
	if refused, _ := errors.AsType[*store.ConflictError](err); refused == nil && !errors.Is(err, store.ErrNotHeld) {
		w.must(err)
	}
}

// note is news of an order that says nothing of where it stands.
func (w *anyWorld) note(t *rapid.T) {
	o, ok := pick(t, "order", w.orders, anything)
	if !ok {
		return
	}
	_, _, err := w.st.AddNote(w.ctx, store.NewNote{Action: store.Action{IssuerID: w.issuer, OrderID: o.id, Actor: "ada"}, Text: "seen"})
	w.must(err)
}

func (w *anyWorld) pause(*rapid.T) {
	_, err := w.st.PauseLane(w.ctx, store.LaneOf(w.issuer), "ada", "why")
	w.must(err)
}

func (w *anyWorld) resume(*rapid.T) {
	_, err := w.st.ResumeLane(w.ctx, store.LaneOf(w.issuer), "ada")
	w.must(err)
}

func (w *anyWorld) check(*rapid.T) {
	_, err := w.st.Check(w.ctx, w.issuer, 10)
	w.must(err)
}

func (w *anyWorld) pass(t *rapid.T) {
	w.wait(choose(t, "time", time.Second, 10*time.Second, 40*time.Second, 2*time.Minute, 6*time.Minute, time.Hour))
}

// wait makes time pass: all that the database remembers is so much longer ago.
func (w *anyWorld) wait(d time.Duration) {
	w.passed += d
	w.Logf("%s pass", d)
	for table, columns := range map[string]string{
		"outbox":        "run_at leased_until first_sent_at refused_since refused_at maybe_sent_at created_at",
		"order_state":   "first_sent_at updated_at ended_at next_check_at heard_at status_since",
		"orders":        "created_at",
		"operations":    "created_at",
		"notifications": "created_at last_seen_at next_try_at",
		"card_guard":    "creation_until",
		"order_changes": "created_at sent_at updated_at expires_at",
	} {
		w.exec(shift(table, columns)+` WHERE issuer_id = $2`, d, w.issuer)
	}
	w.exec(shift("lanes", "paused_at stopped_at probe_at")+` WHERE lane = $2`, d, store.LaneOf(w.issuer))
	w.exec(shift("database_history", "seen_at"), d)
}

func shift(table, columns string) string {
	var sets []string
	for c := range strings.FieldsSeq(columns) {
		sets = append(sets, c+" = CASE WHEN isfinite("+c+") THEN "+c+" - $1::interval ELSE "+c+" END")
	}
	return "UPDATE " + table + " SET " + strings.Join(sets, ", ")
}

// history is a failover or a restore. In the history that is lost, an order may have
// been sent, or released or retried and then sent.
func (w *anyWorld) history(t *rapid.T) {
	o, ok := pick(t, "order sent in the lost history", w.orders, func(o placed) bool {
		var free bool
		w.must(w.conn.QueryRow(w.ctx, `
			SELECT s.status IN ('HELD', 'REJECTED') OR s.status = 'ACCEPTED' AND EXISTS (SELECT FROM outbox m
				WHERE m.order_id = s.order_id AND m.kind = 'submit' AND m.claim_token IS NULL AND m.maybe_sent_at IS NULL AND m.halt IS NULL)
			FROM order_state s WHERE s.issuer_id = $1 AND s.order_id = $2`, w.issuer, o.id).Scan(&free))
		return free && len(w.cards(o)) == 0 // else D1 would have been asked there too
	})
	// By its card alone an operation is never taken for that of an order that was held.
	if ok && below(t, "sent", 2) == 0 && (w.named || w.state(o).Status == order.Accepted) {
		w.take(o.request, o.card)
		w.exempt[o.request] = true
	}
	w.Log("another history")
	w.exec(`UPDATE database_history SET timeline = timeline + 1`)
	changed, err := w.st.CheckTimeline(w.ctx, worldLease)
	w.must(err)
	if !changed {
		w.Fatal("the change of history was not seen")
	}
}

// promised tells whether no order may be made twice.
func (w *anyWorld) promised() bool { return w.idempotent || w.lag < w.policy.ResendAfter }

// wrong finds what must never be, of the orders of one issuer.
const wrong = `
	SELECT what FROM (
		SELECT 'gaps in events: ' || order_id AS what FROM order_state s WHERE issuer_id = $1 AND version <> (SELECT count(*) FROM order_events e
			WHERE e.issuer_id = s.issuer_id AND e.order_id = s.order_id AND seq BETWEEN 1 AND version)
		UNION ALL SELECT 'events beyond the version: ' || s.order_id FROM order_state s JOIN order_events e USING (issuer_id, order_id)
			WHERE s.issuer_id = $1 AND e.seq > s.version
		UNION ALL SELECT status || ' and messages to send: ' || n FROM order_state s CROSS JOIN LATERAL (SELECT count(*) AS n FROM outbox m
				WHERE m.issuer_id = s.issuer_id AND m.order_id = s.order_id AND m.kind = 'submit') m
			WHERE s.issuer_id = $1 AND n <> CASE WHEN status IN ('ACCEPTED', 'OUTCOME_UNKNOWN') THEN 1 ELSE 0 END
		UNION ALL SELECT 'unknown, and to be sent all the same: ' || s.order_id FROM order_state s JOIN outbox m USING (issuer_id, order_id)
			WHERE s.issuer_id = $1 AND s.status = 'OUTCOME_UNKNOWN' AND m.kind = 'submit' AND m.maybe_sent_at IS NULL
		UNION ALL SELECT 'open, and does not hold its card once: ' || s.order_id FROM order_state s JOIN orders o ON o.issuer_id = s.issuer_id AND o.id = s.order_id
			LEFT JOIN card_guard g ON g.issuer_id = o.issuer_id AND g.card_id = o.card_id
			WHERE s.issuer_id = $1 AND ended_at IS NULL AND coalesce(cardinality(array_positions(g.order_ids, o.id)), 0) <> 1
		UNION ALL SELECT 'holds its card, but is not open: ' || u.id FROM card_guard g, unnest(order_ids) AS u(id) WHERE g.issuer_id = $1
			AND NOT EXISTS (SELECT FROM order_state s JOIN orders o ON o.issuer_id = s.issuer_id AND o.id = s.order_id
				WHERE o.issuer_id = g.issuer_id AND o.id = u.id AND ended_at IS NULL AND o.card_id = g.card_id)
		UNION ALL SELECT 'two operations and no alarm: ' || s.order_id FROM order_state s WHERE s.issuer_id = $1 AND NOT 'second-card' = ANY (attention)
			AND operation_id IS NOT NULL AND EXISTS (SELECT FROM operations p WHERE p.issuer_id = s.issuer_id AND p.order_id = s.order_id AND p.operation_id <> s.operation_id AND p.operation = 'PRODUCE')
		UNION ALL ` + wrongChanges + `
	) a`

func (w *anyWorld) invariants() {
	w.Helper()
	rows, err := w.conn.Query(w.ctx, wrong, w.issuer)
	w.must(err)
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	w.must(err)
	for _, what := range list {
		w.Error(what)
	}
	// By their own clocks, no two workers may send the same order.
	senders := make(map[uuid.UUID]int)
	for _, x := range w.workers {
		if x.Kind == store.KindSubmit && !x.asks() && x.done == nil && w.leased(x, 0) && (x.inFlight || w.stillHolds(x)) {
			senders[x.OrderID]++
		}
	}
	for id, n := range senders {
		if n > 1 {
			w.Errorf("%d workers may send order %s", n, id)
		}
	}
	w.cancelsAreExact()
	for _, o := range w.orders {
		cards := len(w.cards(o))
		if cards > 1 && w.promised() {
			w.Errorf("%d cards were made for %s", cards, o.request)
		}
		if cards == 0 || w.exempt[o.request] {
			continue
		}
		state := w.state(o)
		ended := state.Status == order.Rejected || state.Status == order.Cancelled && state.Rank == 0
		if ended && w.promised() && !slices.Contains(state.Attention, order.AttentionContradiction) {
			w.Errorf("D1 makes %s, which is %s", o.request, state.Status)
		}
	}
	if w.Failed() {
		w.FailNow()
	}
}

// stillHolds tells whether a worker that begins now would be let.
func (w *anyWorld) stillHolds(x *worker) bool {
	if !x.SentBefore && w.now()-x.at < freshClaim {
		return true
	}
	held, err := w.st.Holds(w.ctx, x.Message)
	w.must(err)
	return held
}

// waits tells whether an order waits for another one of its card, for which a human is
// called.
func (w *anyWorld) waits(o placed) bool {
	return slices.ContainsFunc(w.orders, func(other placed) bool {
		if other.card != o.card || other.id == o.id {
			return false
		}
		state := w.state(other)
		return state.ToBeSent() && len(state.Attention) > 0
	})
}

func (w *anyWorld) cards(o placed) (list []*made) {
	for _, m := range w.made {
		if m.request == o.request {
			list = append(list, m)
		}
	}
	return list
}

func (w *anyWorld) state(o placed) order.State {
	found, err := w.st.Order(w.ctx, w.issuer, o.id)
	w.must(err)
	return found.State
}

// settle lets everything come to rest with a bureau in good health: then each order is
// where the bureau has it, or calls for a human.
func (w *anyWorld) settle() {
	_, err := w.st.ResumeLane(w.ctx, store.LaneOf(w.issuer), "ada")
	w.must(err)
	w.workers = nil // all die
	round := func() {
		w.wait(10 * time.Minute)
		w.probe(nil)
		for _, class := range store.Classes {
			at := w.now()
			messages, err := w.st.Claim(w.ctx, store.ClaimRequest{Lane: store.LaneOf(w.issuer), Class: class, Limit: 50, Lease: worldLease})
			w.must(err)
			w.employ(at, messages)
		}
		for _, x := range w.workers {
			w.call(x, func() string { return "taken" })
			w.must(w.st.Complete(w.ctx, []store.Completion{*x.done}))
		}
		w.workers = nil
		w.invariants()
	}
	for range 12 {
		round()
	}
	for range 5 { // what waited for another is asked about twice, and then sent
		for _, m := range w.made {
			w.tell(m, m.step, m.failed)
		}
		for _, c := range w.wanted {
			c.decided = true
			w.tellChange(c)
		}
		w.wait(2 * time.Hour)
		w.sweep(nil)
		round()
	}
	w.invariants()
	w.changesAreSettled()
	for _, o := range w.orders {
		state, cards := w.state(o), w.cards(o)
		switch {
		case len(cards) > 1 && w.named && !slices.Contains(state.Attention, order.AttentionSecondCard):
			w.Errorf("%d cards of %s, and no alarm: %+v", len(cards), o.request, state)
		case len(cards) > 0 && state.Rank == 0 && len(state.Attention) == 0:
			w.Errorf("D1 makes %s, and it is %s", o.request, state.Status)
		case len(cards) == 0 && state.Rank > 0 && len(state.Attention) == 0:
			w.Errorf("%s was never made, and is %s", o.request, state.Status)
		case len(cards) == 0 && state.ToBeSent() && len(state.Attention) == 0 && !w.waits(o):
			w.Errorf("%s is still %s, and nobody is told", o.request, state.Status)
		}
	}
	if w.Failed() {
		w.FailNow()
	}
}
