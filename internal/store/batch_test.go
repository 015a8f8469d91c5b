package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"cardorder/internal/order"
	"cardorder/internal/store"
)

var upload = store.BatchUpload{IssuerID: issuer, Key: "campaign", Client: "test", Format: "ndjson"}

// send uploads rows from..to-1 of a file whose row i orders card i; every tenth is no
// order. It returns the error of the first call that fails.
func (f *fixture) send(w *store.BatchWriter, from, to int) error {
	for i := from; i < to; i++ {
		stored, err := w.Stored(f.t.Context(), int64(i+1), fmt.Append(nil, "row ", i))
		if err != nil {
			return err
		}
		if stored {
			continue
		}
		a := acceptance(fmt.Sprint("batch-", i), fmt.Sprint("batch-", i), "")
		if i%10 == 9 {
			a.Faults = order.Faults{{Pointer: "/cardId", Code: order.CodeRequired, Detail: "is required"}}
		}
		if err := w.Accept(f.t.Context(), int64(i+1), a); err != nil {
			return err
		}
	}
	return nil
}

func (f *fixture) openBatch(up store.BatchUpload) *store.BatchWriter {
	f.t.Helper()
	w, _, err := f.OpenBatch(f.t.Context(), up)
	if err != nil {
		f.t.Fatal(err)
	}
	return w
}

func (f *fixture) upload(up store.BatchUpload, rows int) *store.Batch {
	f.t.Helper()
	w := f.openBatch(up)
	if err := f.send(w, 0, rows); err != nil {
		f.t.Fatal(err)
	}
	b, err := w.Finish(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	return b
}

// untilRead waits until a batch is stored so far: chunks are stored in the background.
func (f *fixture) untilRead(rows int) {
	f.t.Helper()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for value[int](f, `SELECT rows_read FROM order_batches`) != rows {
		select {
		case <-again.C:
		case <-f.t.Context().Done():
			f.t.Fatalf("the batch never had %d rows", rows)
		}
	}
}

func (f *fixture) results(b uuid.UUID, outcome store.RowOutcome) []store.BatchResult {
	f.t.Helper()
	list, err := f.BatchResults(f.t.Context(), issuer, b, outcome, 0, 10_000)
	if err != nil {
		f.t.Fatal(err)
	}
	return list
}

// Large rows do not wait for many others: what waits is in memory.
func TestLargeRowsAreStoredSooner(t *testing.T) {
	t.Parallel()
	f := open(t)
	w := f.openBatch(upload)
	for i := range 10 {
		if _, err := w.Stored(t.Context(), int64(i+1), fmt.Append(nil, "row ", i)); err != nil {
			t.Fatal(err)
		}
		a := acceptance(fmt.Sprint("large-", i), fmt.Sprint("large-", i), "")
		a.Request.Canonical = bytes.Repeat([]byte("x"), 1<<20)
		if err := w.Accept(t.Context(), int64(i+1), a); err != nil {
			t.Fatal(err)
		}
	}
	f.untilRead(8)
	w.Interrupt(t.Context())
}

// What was stored before an interruption is not stored again; the rest is.
func TestBatchGoesOn(t *testing.T) {
	t.Parallel()
	f := open(t)
	w := f.openBatch(upload)
	if err := f.send(w, 0, 700); err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.OpenBatch(t.Context(), upload); !errors.Is(err, store.ErrBatchBusy) {
		t.Errorf("a second upload beside it: %v", err)
	}
	w.Interrupt(t.Context())
	b, err := f.Batch(t.Context(), issuer, w.ID())
	if err != nil || b.Status != store.BatchInterrupted || b.Rows != (store.BatchCounts{Read: 700, Accepted: 630, Refused: 70}) {
		t.Fatalf("after the interruption: %+v, %v", b, err)
	}
	other := f.openBatch(upload)
	_, err = other.Stored(t.Context(), 1, []byte("another file"))
	for i := 1; err == nil && i < 700; i++ {
		_, err = other.Stored(t.Context(), int64(i+1), fmt.Append(nil, "row ", i))
	}
	if conflict, ok := errors.AsType[*store.BatchConflictError](err); !ok || conflict.BatchID != b.ID {
		t.Errorf("another file: %v", err)
	}
	other.Interrupt(t.Context())
	short := f.openBatch(upload)
	if err := f.send(short, 0, 10); err != nil {
		t.Fatal(err)
	}
	if _, err := short.Finish(t.Context()); err == nil {
		t.Error("a file that ends before what is stored was taken")
	}
	short.Interrupt(t.Context())

	done := f.upload(upload, 1200)
	if done.ID != b.ID || done.Status != store.BatchCompleted || done.Rows != (store.BatchCounts{Read: 1200, Accepted: 1080, Refused: 120}) || done.CompletedAt == nil {
		t.Errorf("in the end: %+v", done)
	}
	if n := value[int](f, `SELECT count(*) FROM orders WHERE batch_id = $1`, b.ID); n != 1080 {
		t.Errorf("%d orders, want 1080", n)
	}
	results := f.results(b.ID, "")
	for i, r := range results {
		if r.Line != int64(i+1) || (r.Outcome == store.RowRefused) != (i%10 == 9) || (r.OrderID == nil) != (i%10 == 9) {
			t.Fatalf("result %d: %+v", i, r)
		}
	}
	if refused := f.results(b.ID, store.RowRefused); len(results) != 1200 || len(refused) != 120 || refused[0].Faults[0].Pointer != "/cardId" {
		t.Errorf("%d results, %d refused", len(results), len(refused))
	}

	// The whole file again is only compared.
	again, replay, err := f.OpenBatch(t.Context(), upload)
	if err != nil || !replay {
		t.Fatalf("opening a complete batch: replay %v, %v", replay, err)
	}
	if err := f.send(again, 0, 1200); err != nil {
		t.Fatal(err)
	}
	if b, err := again.Finish(t.Context()); err != nil || b.Rows != done.Rows {
		t.Errorf("the whole file again: %+v, %v", b, err)
	}
	longer, _, err := f.OpenBatch(t.Context(), upload)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.send(longer, 0, 1201); err == nil {
		t.Error("a longer file was taken for the same")
	}
	csv := upload
	csv.Format = "csv"
	if _, _, err := f.OpenBatch(t.Context(), csv); err == nil {
		t.Error("the same key in another format was taken")
	}
}

// An upload whose process died is taken over when its lease has run out; what the dead
// one still sends changes nothing.
func TestBatchIsTakenOver(t *testing.T) {
	t.Parallel()
	f := open(t)
	dead := f.openBatch(upload)
	if err := f.send(dead, 0, 500); err != nil {
		t.Fatal(err)
	}
	f.untilRead(500)
	f.exec(`UPDATE order_batches SET lease_until = now() - interval '1 s'`)
	done := f.upload(upload, 600)
	if err := f.send(dead, 500, 1000); err == nil {
		_, err = dead.Finish(t.Context())
		if !errors.Is(err, store.ErrBatchBusy) {
			t.Errorf("the dead upload goes on: %v", err)
		}
	}
	b, err := f.Batch(t.Context(), issuer, done.ID)
	if err != nil || b.Rows.Read != 600 || b.Status != store.BatchCompleted {
		t.Errorf("in the end: %+v, %v", b, err)
	}
	if n := value[int](f, `SELECT count(*) FROM orders`); n != 540 {
		t.Errorf("%d orders, want 540", n)
	}
}

// Rows are told apart: new, repeated, in conflict, and not taken by the database.
func TestBatchRows(t *testing.T) {
	t.Parallel()
	f := open(t)
	known := f.accept("known", "r-known")
	w := f.openBatch(upload)
	poison := acceptance("poison", "r-poison", "")
	poison.Request.Production.ConsumerID = "\x00"
	replaces := acceptance("replaces", "r-replaces", "")
	replaces.Request.ReplacesOrderID = uuid.NewString()
	urgent := acceptance("urgent", "r-urgent", "")
	urgent.Request.Urgent = true
	for i, a := range []store.Acceptance{
		acceptance("known", "r-known", "row-key"), acceptance("known", "r-other", ""), acceptance("new", "r-new", ""),
		acceptance("new", "r-new", ""), poison, replaces, urgent,
	} {
		if _, err := w.Stored(t.Context(), int64(i+1), fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
		if err := w.Accept(t.Context(), int64(i+1), a); err != nil {
			t.Fatal(err)
		}
	}
	b, err := w.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if b.Rows != (store.BatchCounts{Read: 7, Accepted: 2, Replayed: 2, Refused: 3}) {
		t.Errorf("counts %+v", b.Rows)
	}
	want := []string{
		"1replayed0true", "2refusedduplicate-order0true", "3accepted0false", "4replayed0false",
		"5refusedinternal0false", "6refusedinvalid-request1false", "7accepted0false",
	}
	for i, r := range f.results(b.ID, "") {
		line := fmt.Sprintf("%d%s%s%d%v", r.Line, r.Outcome, r.Problem, len(r.Faults), r.OrderID != nil && *r.OrderID == known.ID)
		if line != want[i] {
			t.Errorf("result %s, want %s", line, want[i])
		}
	}
	if classes := value[[]int16](f, `SELECT array_agg(m.class ORDER BY m.id) FROM outbox m JOIN orders o ON o.id = m.order_id WHERE o.batch_id IS NOT NULL`); !slices.Equal(classes, []int16{1, 0}) {
		t.Errorf("classes %v: only the urgent one goes with the singles", classes)
	}
}

// Orders of a held batch are not sent until it is released; a cancelled one frees its
// card. What is being sent is left alone.
func TestBatchActions(t *testing.T) {
	t.Parallel()
	f := open(t)
	held := upload
	held.Hold = true
	b := f.upload(held, 10)
	act := func(action store.BatchAction, want store.ActionCounts) {
		t.Helper()
		got, err := f.Act(t.Context(), issuer, b.ID, action, "operator")
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", action, got, err, want)
		}
	}
	statuses := func() string {
		return value[string](f, `SELECT string_agg(status || ' ' || n, ', ' ORDER BY status) FROM (SELECT status, count(*) n FROM order_state GROUP BY 1) s`)
	}
	claim := func(limit int) []store.Message {
		t.Helper()
		messages, err := f.Claim(t.Context(), store.ClaimRequest{Lane: lane, Class: store.ClassBatch, Limit: limit, Lease: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		return messages
	}
	if got := statuses(); got != "HELD 9" || len(claim(10)) != 0 {
		t.Errorf("held: %s", got)
	}
	act(store.BatchHold, store.ActionCounts{Unchanged: 9})
	act(store.BatchRelease, store.ActionCounts{Changed: 9})
	act(store.BatchRelease, store.ActionCounts{Unchanged: 9})
	claimed := claim(2)
	act(store.BatchHold, store.ActionCounts{Changed: 7, TooLate: 2})
	if got := statuses(); got != "ACCEPTED 2, HELD 7" || len(claim(10)) != 0 {
		t.Errorf("held again: %s", got)
	}
	f.complete(taken(claimed[0], "op-0"))
	act(store.BatchCancel, store.ActionCounts{Changed: 7, TooLate: 2})
	act(store.BatchCancel, store.ActionCounts{Unchanged: 7, TooLate: 2})
	if got := statuses(); got != "ACCEPTED 1, CANCELLED 7, SUBMITTED 1" {
		t.Errorf("cancelled: %s", got)
	}
	if n := value[int](f, `SELECT count(*) FROM card_guard`); n != 2 {
		t.Errorf("%d cards are guarded, want 2", n)
	}
	if n := value[int](f, `SELECT count(*) FROM order_events WHERE actor = 'operator'`); n != 9+7+7+1 { // one is a change for D1
		t.Errorf("%d events name the operator", n)
	}
	if gaps := value[int](f, `SELECT count(*) FROM order_state s WHERE version <> (SELECT count(*) FROM order_events e WHERE e.order_id = s.order_id)`); gaps != 0 {
		t.Errorf("%d orders have gaps in their events", gaps)
	}
	if _, _, err := f.OpenBatch(t.Context(), held); !errors.Is(err, store.ErrBatchCancelled) {
		t.Errorf("an upload to a cancelled batch: %v", err)
	}
	if _, err := f.Act(t.Context(), issuer, uuid.New(), store.BatchHold, "operator"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("an unknown batch: %v", err)
	}
}

// A hold and a cancel also reach the rows that are still to come.
func TestActionsDuringAnUpload(t *testing.T) {
	t.Parallel()
	f := open(t)
	w := f.openBatch(upload)
	if err := f.send(w, 0, 600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Act(t.Context(), issuer, w.ID(), store.BatchHold, "operator"); err != nil {
		t.Fatal(err)
	}
	if err := f.send(w, 600, 1200); err != nil {
		t.Fatal(err)
	}
	f.untilRead(1000)
	if n := value[int](f, `SELECT count(*) FROM order_state WHERE status <> 'HELD'`); n != 0 {
		t.Errorf("%d orders of a held batch are not held", n)
	}
	if _, err := f.Act(t.Context(), issuer, w.ID(), store.BatchCancel, "operator"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Finish(t.Context()); !errors.Is(err, store.ErrBatchCancelled) {
		t.Errorf("the upload went on: %v", err)
	}
	w.Interrupt(t.Context())
	b, err := f.Batch(t.Context(), issuer, w.ID())
	if err != nil || b.Status != store.BatchCancelled || b.Rows.Read != 1000 {
		t.Errorf("in the end: %+v, %v", b, err)
	}
	if n := value[int](f, `SELECT count(*) FROM order_state WHERE status <> 'CANCELLED'`); n != 0 {
		t.Errorf("%d orders are not cancelled", n)
	}
}

// A rehearsal tells what would become of rows and leaves nothing behind.
func TestRehearse(t *testing.T) {
	t.Parallel()
	f := open(t)
	f.accept("known", "r-known")
	before := f.rows()
	results, err := f.Rehearse(t.Context(), []int64{2, 3, 5}, []store.Acceptance{
		acceptance("known", "r-known", ""), acceptance("known", "r-2", ""), acceptance("new", "r-3", ""),
	})
	if err != nil || len(results) != 3 {
		t.Fatal(results, err)
	}
	if results[0].Outcome != store.RowReplayed || results[1].Problem != string(store.DuplicateOrder) || results[2].Outcome != store.RowAccepted || results[2].Line != 5 {
		t.Errorf("results %+v", results)
	}
	if f.rows() != before {
		t.Errorf("before: %s; after: %s", before, f.rows())
	}
}

// breaker ends the session of the next statement that begins with sql.
type breaker struct {
	f     *fixture
	sql   string
	armed atomic.Bool
}

func (b *breaker) TraceQueryStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if strings.HasPrefix(strings.TrimSpace(data.SQL), b.sql) && b.armed.CompareAndSwap(true, false) {
		b.f.exec(`SELECT pg_terminate_backend($1)`, conn.PgConn().PID())
	}
	return ctx
}

func (*breaker) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// A chunk that could not be stored ends the upload: nothing after it is stored, or the
// file could not go on from where it came to.
func TestBatchAfterALostChunk(t *testing.T) {
	t.Parallel()
	f := open(t)
	cut := &breaker{f: f, sql: "UPDATE order_batches SET lease_until"}
	st := f.traced(cut)
	w, _, err := st.OpenBatch(t.Context(), upload)
	if err != nil {
		t.Fatal(err)
	}
	cut.armed.Store(true)
	if err := f.send(w, 0, 1200); err == nil || !store.Unavailable(err) {
		t.Errorf("the upload was told %v", err)
	}
	w.Interrupt(t.Context())
	if n := value[int](f, `SELECT rows_read FROM order_batches`); n != 0 {
		t.Errorf("%d rows are stored after one that is not", n)
	}
	if b := f.upload(upload, 1200); b.Rows.Read != 1200 || b.Status != store.BatchCompleted {
		t.Errorf("in the end: %+v", b)
	}
	if n := value[int](f, `SELECT count(*) FROM orders`); n != 1080 {
		t.Errorf("%d orders, want 1080", n)
	}
}

// A file whose lines have shifted is another file, even when its rows are the same.
func TestBatchWithShiftedLines(t *testing.T) {
	t.Parallel()
	f := open(t)
	w := f.openBatch(upload)
	row := func(w *store.BatchWriter, i, line int) error {
		stored, err := w.Stored(t.Context(), int64(line), fmt.Append(nil, "row ", i))
		if err != nil || stored {
			return err
		}
		return w.Accept(t.Context(), int64(line), store.Acceptance{Faults: order.Faults{{Code: order.CodeRequired, Detail: "is required"}}})
	}
	for i := range 10 {
		if err := row(w, i, i+2); err != nil { // the first line is empty
			t.Fatal(err)
		}
	}
	w.Interrupt(t.Context())
	again := f.openBatch(upload)
	var err error
	for i := 0; i < 20 && err == nil; i++ {
		err = row(again, i, i+1)
	}
	if err == nil {
		_, err = again.Finish(t.Context())
	}
	if _, ok := errors.AsType[*store.BatchConflictError](err); !ok {
		t.Errorf("the file with other lines: %v", err)
	}
}

// An upload that goes on keeps its lease while it comes to where it was, however long
// that takes; and it learns there that it was cancelled.
func TestBatchKeepsItsLeaseWhileComparing(t *testing.T) {
	t.Parallel()
	f := open(t)
	w := f.openBatch(upload)
	if err := f.send(w, 0, 1000); err != nil {
		t.Fatal(err)
	}
	w.Interrupt(t.Context())
	again := f.openBatch(upload)
	f.exec(`UPDATE order_batches SET lease_until = now() - interval '1 s'`)
	if err := f.send(again, 0, 600); err != nil {
		t.Fatal(err)
	}
	if b, err := f.Batch(t.Context(), issuer, w.ID()); err != nil || b.Status != store.BatchReceiving {
		t.Errorf("while it is compared: %+v, %v", b, err)
	}
	if _, err := f.Act(t.Context(), issuer, w.ID(), store.BatchCancel, "operator"); err != nil {
		t.Fatal(err)
	}
	if err := f.send(again, 600, 1000); !errors.Is(err, store.ErrBatchCancelled) {
		t.Errorf("after the cancel: %v", err)
	}
}

// What D1 told of an order while it was kept back counts when it is let go: D1 is asked
// before anything is sent, and a cancel comes too late.
func TestHeldOrderThatD1Has(t *testing.T) {
	t.Parallel()
	f := open(t)
	told := notification(1, "op-old", "READY")
	told.IssuerRequestID = "batch-0"
	f.receive(told) // from an older system; nobody sweeps it
	held := upload
	held.Hold = true
	first := f.upload(held, 1)
	act := func(b *store.Batch, action store.BatchAction, want store.ActionCounts) {
		t.Helper()
		if got, err := f.Act(t.Context(), issuer, b.ID, action, "operator"); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", action, got, err, want)
		}
	}
	claim := func(lease time.Duration) store.Message {
		t.Helper()
		m, err := f.Claim(t.Context(), store.ClaimRequest{Lane: lane, Class: store.ClassBatch, Limit: 10, Lease: lease})
		if err != nil || len(m) != 1 {
			t.Fatal(m, err)
		}
		return m[0]
	}
	act(first, store.BatchRelease, store.ActionCounts{Changed: 1})
	if m := claim(time.Minute); !m.MaybeSent {
		t.Error("a notification names the order, and it is sent without asking")
	}

	// An answer that was stored after its claim was lost, and D1 asked in vain.
	for action, want := range map[store.BatchAction]store.ActionCounts{store.BatchRelease: {Changed: 1}, store.BatchCancel: {TooLate: 1}} {
		f.exec(`DELETE FROM outbox`)
		name := string(action)
		held.Key = name
		w := f.openBatch(held)
		if err := w.Accept(t.Context(), 1, acceptance(name, name, "")); err != nil {
			t.Fatal(err)
		}
		second, err := w.Finish(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		act(second, store.BatchRelease, store.ActionCounts{Changed: 1})
		lost := claim(0)
		f.complete(store.Completion{
			Message: claim(time.Minute), Attempt: attempt("not-found"),
			Evidence: []order.Evidence{order.NotFound{}}, Next: store.Next{Maybe: store.MaybeClear},
		})
		act(second, store.BatchHold, store.ActionCounts{Changed: 1})
		f.complete(taken(lost, "op-"+name))
		act(second, action, want)
		m := claim(time.Minute)
		if !m.MaybeSent || m.FirstSentAt.After(time.Now()) {
			t.Errorf("%s: D1 has the order, and it is sent without asking", action)
		}
		f.complete(taken(m, "op-"+name))
		if n := value[int](f, `SELECT count(*) FROM outbox WHERE kind = 'change'`); (n == 1) != (action == store.BatchCancel) {
			t.Errorf("%s: D1 is sent %d changes", action, n)
		}
	}
}
