package store_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

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
		return w.Refuse(t.Context(), int64(line), order.Faults{{Code: order.CodeRequired, Detail: "is required"}})
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
