package store_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"cardorder/internal/order"
	"cardorder/internal/store"
)

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
		m, err := f.Claim(t.Context(), lane, store.ClassBatch, 10, lease)
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
	f.exec(`DELETE FROM outbox`)
	held.Key = "another"
	w := f.openBatch(held)
	if err := w.Accept(t.Context(), 1, acceptance("late", "late", "")); err != nil {
		t.Fatal(err)
	}
	second, err := w.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	act(second, store.BatchRelease, store.ActionCounts{Changed: 1})
	lost := claim(-time.Second)
	f.complete(store.Completion{
		Message: claim(time.Minute), Attempt: attempt("not-found"),
		Evidence: []order.Evidence{order.NotFound{}}, Next: store.Next{Maybe: store.MaybeClear},
	})
	act(second, store.BatchHold, store.ActionCounts{Changed: 1})
	f.complete(taken(lost, "op-late"))
	act(second, store.BatchCancel, store.ActionCounts{TooLate: 1})
	f.exec(`UPDATE order_batches SET status = 'COMPLETED'`)
	act(second, store.BatchRelease, store.ActionCounts{Changed: 1})
	if m := claim(time.Minute); !m.MaybeSent || m.FirstSentAt.After(time.Now()) {
		t.Error("D1 has the order, and it is sent without asking")
	}
}

// Orders that wait for a lock leave connections to the others, however many they are.
func TestWaitingOrdersLeaveConnections(t *testing.T) {
	t.Parallel()
	f := open(t)
	f.accept("blocked", "r-0")
	tx, err := f.conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SELECT FROM card_guard WHERE card_id = 'blocked' FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	ctx, giveUp := context.WithCancel(t.Context())
	var waiting sync.WaitGroup
	var answered atomic.Int32
	for i := range 40 { // more than there are connections
		waiting.Go(func() {
			_, _ = f.Accept(ctx, acceptance("blocked", fmt.Sprint("r-", i+1), ""))
			answered.Add(1)
		})
	}
	for i := range 200 {
		f.accept(fmt.Sprint("free-", i), fmt.Sprint("free-", i))
	}
	if n := answered.Load(); n > 0 {
		t.Errorf("the others had to wait until %d of the waiting had given up", n)
	}
	giveUp()
	waiting.Wait()
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
}
