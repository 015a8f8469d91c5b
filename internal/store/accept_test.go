package store_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"cardorder/internal/order"
	"cardorder/internal/store"
)

func acceptance(card, requestID, key string) store.Acceptance {
	return store.Acceptance{IssuerID: issuer, IdempotencyKey: key, Client: "test", Request: request(card, requestID)}
}

// conflictOf returns what an acceptance was refused for, and because of which order.
func conflictOf(err error) (store.ConflictKind, uuid.UUID) {
	conflict, ok := errors.AsType[*store.ConflictError](err)
	if !ok {
		return "", uuid.Nil
	}
	return conflict.Kind, conflict.OrderID
}

// rows counts the rows of every table that an order writes.
func (f *fixture) rows() string {
	f.t.Helper()
	var counts []string
	for _, table := range []string{"orders", "idempotency_keys", "card_guard", "order_state", "order_payload", "order_events", "outbox"} {
		counts = append(counts, fmt.Sprintf("%s %d", table, value[int](f, `SELECT count(*) FROM `+table)))
	}
	return strings.Join(counts, ", ")
}

// Orders of one group share a transaction; one that the database does not take fails
// alone.
func TestPoisonedCompanion(t *testing.T) {
	t.Parallel()
	f := open(t)
	var list []store.Acceptance
	for i := range 20 {
		list = append(list, acceptance(fmt.Sprint("card-", i), fmt.Sprint("r-", i), fmt.Sprint("k-", i)))
	}
	_, errs := f.CommitTogether(t.Context(), list)
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if n := value[int](f, `SELECT count(DISTINCT xmin::text) FROM orders`); n != 1 {
		t.Errorf("the group made %d transactions", n)
	}
	for i := range list {
		list[i] = acceptance(fmt.Sprint("card-b", i), fmt.Sprint("r-b", i), fmt.Sprint("k-b", i))
	}
	list[7].Request.Production.ConsumerID = "poison\x00" // no text of PostgreSQL
	orders, errs := f.CommitTogether(t.Context(), list)
	for i, err := range errs {
		if (err != nil) != (i == 7) || i != 7 && orders[i].Replayed {
			t.Errorf("order %d: %v", i, err)
		}
	}
	if want := "orders 39, idempotency_keys 39, card_guard 39, order_state 39, order_payload 39, order_events 39, outbox 39"; f.rows() != want {
		t.Errorf("stored: %s", f.rows())
	}
}

// Within one group, requests that repeat each other or want the same card are decided
// as if they had come one after the other.
func TestGroupOfRivals(t *testing.T) {
	t.Parallel()
	f := open(t)
	before := f.accept("taken", "r-taken")
	other := acceptance("card-a", "r-a", "k-2")
	other.Request.Canonical = []byte("something else")
	orders, errs := f.CommitTogether(t.Context(), []store.Acceptance{
		acceptance("card-a", "r-a", "k-1"),     // 0: new
		acceptance("card-a", "r-a", "k-2"),     // 1: repeats 0 with another key
		acceptance("card-a", "r-a", ""),        // 2: repeats 0
		other,                                  // 3: same id, other content
		acceptance("card-a", "r-b", "k-3"),     // 4: the card is taken by 0
		acceptance("taken", "r-c", "k-4"),      // 5: the card was taken before
		acceptance("taken", "r-taken", "k-5"),  // 6: repeats the order before
		acceptance("card-c", "r-d", "k-1"),     // 7: the key of 0
		acceptance("card-d", "r-e", "k-6"),     // 8: new
		acceptance("card-d", "r-taken", "k-6"), // 9: an id and a key of two orders
	})
	first, last := orders[0].Order.ID, orders[8].Order.ID
	for i, want := range []struct {
		replay   uuid.UUID
		conflict store.ConflictKind
		other    uuid.UUID
	}{
		0: {}, 1: {replay: first}, 2: {replay: first}, 3: {conflict: store.ContentDiffers, other: first},
		4: {conflict: store.DuplicateOrder, other: first}, 5: {conflict: store.DuplicateOrder, other: before.ID},
		6: {replay: before.ID}, 7: {conflict: store.ContentDiffers, other: first}, 8: {},
		9: {conflict: store.ContentDiffers, other: before.ID},
	} {
		kind, other := conflictOf(errs[i])
		if kind != want.conflict || other != want.other || kind == "" && errs[i] != nil {
			t.Errorf("%d: error %v, want %s %s", i, errs[i], want.conflict, want.other)
		}
		if errs[i] == nil && (orders[i].Replayed != (want.replay != uuid.Nil) || orders[i].Replayed && orders[i].Order.ID != want.replay) {
			t.Errorf("%d: replayed %v, order %s", i, orders[i].Replayed, orders[i].Order.ID)
		}
	}
	if want := "orders 3, idempotency_keys 4, card_guard 3, order_state 3, order_payload 3, order_events 3, outbox 3"; f.rows() != want {
		t.Errorf("stored: %s; want %s", f.rows(), want)
	}
	if holder := value[uuid.UUID](f, `SELECT order_id FROM idempotency_keys WHERE key = 'k-6'`); holder != last {
		t.Errorf("k-6 leads to %s, want %s", holder, last)
	}
}

// A caller that gives up ends nobody's order but perhaps its own; its keys make the
// repetition safe. An order that has to wait for a lock holds up no other.
func TestCancelledCompanion(t *testing.T) {
	t.Parallel()
	f := open(t)
	blocked := f.accept("blocked", "r-0")
	tx, err := f.conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SELECT FROM card_guard WHERE card_id = 'blocked' FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	waiting := acceptance("blocked", "r-1", "k-1")
	waiting.Request.DuplicateOverride = "for the test"
	ctx, cancel := context.WithCancel(t.Context())
	given := make(chan error, 1)
	go func() {
		_, err := f.Accept(ctx, waiting)
		given <- err
	}()
	for i := range 30 { // more than there are committers
		f.accept(fmt.Sprint("free-", i), fmt.Sprint("free-", i))
	}
	cancel()
	if err := <-given; !errors.Is(err, context.Canceled) {
		t.Errorf("the caller that gave up was told %v", err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Accept(t.Context(), waiting); err != nil {
		t.Errorf("the repetition: %v", err)
	}
	if n := value[int](f, `SELECT count(*) FROM orders WHERE card_id = 'blocked'`); n != 2 {
		t.Errorf("the card has %d orders besides %s, want 1", n-1, blocked.ID)
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

// Two replicas: a hundred identical requests are one order, and a hundred requests for
// one card are one order.
func TestRivalsAcrossReplicas(t *testing.T) {
	t.Parallel()
	f := open(t)
	replicas := []*store.Store{f.Store, f.traced(nil)}
	var mu sync.Mutex
	counts := make(map[string]int)
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			same, err := replicas[i%2].Accept(t.Context(), acceptance("same", "", "the-key"))
			_, rival := replicas[i%2].Accept(t.Context(), acceptance("coveted", fmt.Sprint("r-", i), fmt.Sprint("k-", i)))
			kind, _ := conflictOf(rival)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
				return
			}
			counts[fmt.Sprintf("replayed %v", same.Replayed)]++
			counts["rival "+string(kind)]++
		})
	}
	wg.Wait()
	want := map[string]int{"replayed false": 1, "replayed true": 99, "rival ": 1, "rival duplicate-order": 99}
	if fmt.Sprint(counts) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", counts, want)
	}
	if want := "orders 2, idempotency_keys 2, card_guard 2, order_state 2, order_payload 2, order_events 2, outbox 2"; f.rows() != want {
		t.Errorf("stored: %s", f.rows())
	}
}

// An order is compared in the way of the release that stored it.
func TestComparisonAcrossReleases(t *testing.T) {
	t.Parallel()
	f := open(t)
	a := acceptance("card", "r", "k")
	first := f.accept("card", "r")
	mac := hmac.New(sha256.New, make([]byte, 32))
	mac.Write(a.Request.Canonical)
	f.exec(`UPDATE orders SET content_hash = $1, content_hash_version = 1`, mac.Sum(nil))
	again, err := f.Accept(t.Context(), a)
	if err != nil || !again.Replayed || again.Order.ID != first.ID {
		t.Errorf("an order of the first release: %+v, %v", again, err)
	}
	a.Request.Canonical = []byte("another")
	if _, err := f.Accept(t.Context(), a); err == nil {
		t.Error("other content was taken for the same")
	}
	f.exec(`UPDATE orders SET content_hash_version = 99`)
	if _, err := f.Accept(t.Context(), a); !errors.Is(err, store.ErrNewerRelease) || !store.Unavailable(err) {
		t.Errorf("an order of a newer release: %v", err)
	}
}

// Orders that replace another are linked both ways; a replaced order has to be there.
func TestReplacedOrder(t *testing.T) {
	t.Parallel()
	f := open(t)
	first := f.accept("card-1", "r-1")
	a := acceptance("card-2", "r-2", "")
	a.Request.ReplacesOrderID = first.ID.String()
	second, err := f.Accept(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	if r := second.Order.ReplacesOrderID; r == nil || *r != first.ID {
		t.Errorf("the new order replaces %v", r)
	}
	if list := f.order(first.ID).ReplacedBy; !slices.Equal(list, []uuid.UUID{second.Order.ID}) {
		t.Errorf("the old order is replaced by %v", list)
	}
	a = acceptance("card-3", "r-3", "")
	a.Request.ReplacesOrderID = uuid.NewString()
	_, err = f.Accept(t.Context(), a)
	if faults, _ := errors.AsType[order.Faults](err); len(faults) != 1 || faults[0].Code != order.CodeUnknownOrder {
		t.Errorf("an unknown one: %v", err)
	}
	a.Faults = order.Faults{{Pointer: "/services", Code: order.CodeRequired}}
	_, err = f.Accept(t.Context(), a)
	if faults, _ := errors.AsType[order.Faults](err); len(faults) != 2 || len(a.Faults) != 1 {
		t.Errorf("an unknown one beside another fault: %v", err)
	}
}

// A renewal of a card that was never ordered here is taken with a warning.
func TestNeverOrderedHere(t *testing.T) {
	t.Parallel()
	f := open(t)
	a := acceptance("old-card", "r-1", "")
	a.Request.Production.Services.Issuance = order.IssuanceRenewal
	a.Request.Warnings = []string{"deprecated-member:state"}
	first, err := f.Accept(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"deprecated-member:state", order.WarningNeverOrdered}
	if !slices.Equal(first.Order.Warnings, want) || !slices.Equal(f.order(first.Order.ID).Warnings, want) {
		t.Errorf("warnings %v", first.Order.Warnings)
	}
	b := acceptance("old-card", "r-2", "")
	b.Request.Production.Services.Issuance, b.Request.DuplicateOverride = order.IssuanceRenewal, "again"
	second, err := f.Accept(t.Context(), b)
	if err != nil || len(second.Order.Warnings) != 0 {
		t.Errorf("the second order of the card: %v, %v", second, err)
	}
}

// A dry run tells what would happen and leaves nothing behind.
func TestDryRun(t *testing.T) {
	t.Parallel()
	f := open(t)
	first := f.accept("card", "r-1")
	before := f.rows()
	fresh, err := f.DryRun(t.Context(), acceptance("card-2", "r-2", "k-2"))
	if err != nil || fresh.Replayed {
		t.Errorf("a new order: %+v, %v", fresh, err)
	}
	again, err := f.DryRun(t.Context(), acceptance("card", "r-1", "k-3"))
	if err != nil || !again.Replayed || again.Order.ID != first.ID {
		t.Errorf("a repeated one: %+v, %v", again, err)
	}
	_, err = f.DryRun(t.Context(), acceptance("card", "r-4", "k-4"))
	if kind, other := conflictOf(err); kind != store.DuplicateOrder || other != first.ID {
		t.Errorf("one for a card that is taken: %v", err)
	}
	if f.rows() != before {
		t.Errorf("before: %s; after: %s", before, f.rows())
	}
}

// What a commit came to is not known when the connection breaks in it: the caller is
// told to repeat, and the repetition finds the order or makes it, once.
func TestUnknownCommit(t *testing.T) {
	t.Parallel()
	f := open(t)
	cut := &cutter{f: f}
	st := f.traced(cut)
	a := acceptance("card", "r", "k")
	_, err := st.Accept(t.Context(), a)
	if err == nil || !store.Unavailable(err) {
		t.Errorf("the caller was told %v", err)
	}
	again, err := st.Accept(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	if n := value[int](f, `SELECT count(*) FROM orders`); n != 1 {
		t.Errorf("%d orders, the last %s", n, again.Order.ID)
	}
}

// cutter ends the session of the first COMMIT that it sees.
type cutter struct {
	f    *fixture
	once sync.Once
}

func (c *cutter) TraceQueryStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if strings.EqualFold(data.SQL, "commit") {
		c.once.Do(func() { c.f.exec(`SELECT pg_terminate_backend($1)`, conn.PgConn().PID()) })
	}
	return ctx
}

func (*cutter) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
