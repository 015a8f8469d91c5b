package store_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"cardorder/internal/order"
	"cardorder/internal/pgtest"
	"cardorder/internal/store"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m, store.Migrate)) }

const (
	issuer = "ISSUER0001"
	lane   = "d1/ISSUER0001"
)

type fixture struct {
	*store.Store
	t    *testing.T
	conn *pgx.Conn
	url  string
}

func open(t *testing.T) *fixture {
	t.Helper()
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
	return &fixture{Store: st, t: t, conn: conn, url: url}
}

func (f *fixture) exec(sql string, args ...any) {
	f.t.Helper()
	if _, err := f.conn.Exec(f.t.Context(), sql, args...); err != nil {
		f.t.Fatalf("%s: %v", sql, err)
	}
}

func value[T any](f *fixture, sql string, args ...any) T {
	f.t.Helper()
	var v T
	if err := f.conn.QueryRow(f.t.Context(), sql, args...).Scan(&v); err != nil {
		f.t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// request is a valid order for a card.
func request(card, requestID string) *order.Request {
	return &order.Request{
		CardID: card, Canonical: []byte(card + requestID), EndsAt: order.Shipped,
		Production: order.Production{
			ConsumerID: "consumer", CardProductID: "gold", IssuerRequestID: requestID, Channel: order.ChannelThales,
			Services: order.Services{Issuance: order.IssuanceCreation, Delivery: "POST"}, EncryptedData: "a.b.c.d.e",
			Shipment: &order.Shipment{Type: order.ShipmentIndividual, DeliveryAddress: &order.Address{
				Line1: "1 Rue de la Paix", ZipCode: "75002", City: "Paris", CountryCode: "FR",
			}},
		},
	}
}

func (f *fixture) accept(card, requestID string) *store.Order {
	f.t.Helper()
	a, err := f.Accept(f.t.Context(), store.Acceptance{IssuerID: issuer, Client: "test", Request: request(card, requestID)})
	if err != nil {
		f.t.Fatal(err)
	}
	return a.Order
}

func (f *fixture) claim(limit int, lease time.Duration) []store.Message {
	f.t.Helper()
	messages, err := f.Claim(f.t.Context(), store.ClaimRequest{Lane: lane, Class: store.ClassSingle, Limit: limit, Lease: lease})
	if err != nil {
		f.t.Fatal(err)
	}
	return messages
}

func (f *fixture) complete(c ...store.Completion) {
	f.t.Helper()
	if err := f.Complete(f.t.Context(), c); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) order(id uuid.UUID) *store.Order {
	f.t.Helper()
	o, err := f.Order(f.t.Context(), issuer, id)
	if err != nil {
		f.t.Fatal(err)
	}
	return o
}

func attempt(outcome string) store.Attempt {
	id, _ := uuid.NewV7()
	return store.Attempt{
		ID: id, Kind: store.AttemptSubmit, Outcome: outcome, Reason: outcome, CorrelationID: id.String(), StartedAt: time.Now(),
	}
}

func taken(m store.Message, operationID string) store.Completion {
	return store.Completion{
		Message: m, Attempt: attempt("taken"), Seen: []string{operationID},
		Evidence: []order.Evidence{order.Taken{OperationID: operationID}},
	}
}

// What was accepted comes out of the claim as it went in, and rests sealed.
func TestAcceptedOrderComesOutOfTheClaim(t *testing.T) {
	t.Parallel()
	f := open(t)
	o := f.accept("card", "request")
	messages := f.claim(10, time.Minute)
	if len(messages) != 1 || messages[0].OrderID != o.ID || messages[0].MaybeSent || messages[0].Err != nil {
		t.Fatalf("claimed %+v", messages)
	}
	var got order.Production
	if err := json.Unmarshal(messages[0].Body, &got); err != nil || !reflect.DeepEqual(got, request("card", "request").Production) {
		t.Errorf("production %s (%v)", messages[0].Body, err)
	}
	if n := value[int](f, `SELECT count(*) FROM order_payload p WHERE position('Paris'::bytea IN production) > 0`); n != 0 {
		t.Error("the payload rests in clear")
	}
}

// A sealed value belongs to its row: moved to another, it cannot be opened, and
// that row's trouble strands nobody else.
func TestSealedContentIsBoundToItsRow(t *testing.T) {
	t.Parallel()
	f := open(t)
	a, b := f.accept("card-a", "a"), f.accept("card-b", "b")
	f.exec(`UPDATE order_payload SET production = (SELECT production FROM order_payload WHERE order_id = $1) WHERE order_id = $2`, a.ID, b.ID)
	for _, m := range f.claim(10, time.Minute) {
		if failed := m.Err != nil; failed != (m.OrderID == b.ID) {
			t.Errorf("order %s: %v", m.OrderID, m.Err)
		}
	}
}

// Many workers at once never claim the same message.
func TestNoMessageIsClaimedTwice(t *testing.T) {
	t.Parallel()
	f := open(t)
	const n = 60
	for i := range n {
		f.accept(fmt.Sprintf("card-%d", i), fmt.Sprintf("r-%d", i))
	}
	var mu sync.Mutex
	times := make(map[int64]int)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				messages, err := f.Claim(t.Context(), store.ClaimRequest{Lane: lane, Class: store.ClassSingle, Limit: 7, Lease: time.Minute})
				if err != nil {
					t.Error(err)
				}
				if len(messages) == 0 {
					return
				}
				mu.Lock()
				for _, m := range messages {
					times[m.ID]++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	// SKIP LOCKED may have ended a worker early; the rest is still there to claim.
	for _, m := range f.claim(n, time.Minute) {
		times[m.ID]++
	}
	if len(times) != n {
		t.Errorf("%d messages were claimed, want %d", len(times), n)
	}
	for id, count := range times {
		if count != 1 {
			t.Errorf("message %d was claimed %d times", id, count)
		}
	}
}

// D1's answer about one order may show a second card of another one of the same card.
func TestSecondCardSeenBesideAnotherOrder(t *testing.T) {
	t.Parallel()
	f := open(t)
	first := f.accept("card", "first")
	f.complete(taken(f.claim(1, time.Minute)[0], "first-operation"))
	r := request("card", "second")
	r.DuplicateOverride = "a test"
	a, err := f.Accept(t.Context(), store.Acceptance{IssuerID: issuer, Client: "test", Request: r})
	if err != nil {
		t.Fatal(err)
	}
	c := taken(f.claim(1, time.Minute)[0], "second-operation")
	c.Attempt.Kind = store.AttemptAsk
	c.Others = []store.OrderOperation{{OrderID: first.ID, OperationID: "first-again"}}
	f.complete(c)
	if got := f.order(first.ID); got.State.OperationID != "first-operation" || !slices.Equal(got.State.Attention, []order.Attention{order.AttentionSecondCard}) {
		t.Errorf("the other order: operation %s, attention %v", got.State.OperationID, got.State.Attention)
	}
	if got := f.order(a.Order.ID); got.State.Status != order.Submitted || len(got.State.Attention) > 0 {
		t.Errorf("the order asked about: %s, attention %v", got.State.Status, got.State.Attention)
	}
}

// A worker that lost its claim changes no state; what D1 answered it is kept as
// a fact all the same.
func TestLostClaimChangesNothing(t *testing.T) {
	t.Parallel()
	f := open(t)
	o := f.accept("card", "request")
	stale := f.claim(1, time.Minute)[0]
	f.exec(`UPDATE outbox SET run_at = now() - interval '1 h', leased_until = now() - interval '1 s'`)
	fresh := f.claim(1, time.Minute)
	if len(fresh) != 1 || !fresh[0].MaybeSent || fresh[0].SentAgo < time.Second || fresh[0].SentAgo > time.Minute {
		t.Fatalf("taken over as %+v, want an unknown outcome since the lease ended", fresh)
	}
	f.complete(taken(stale, "stale-operation"))
	if got := f.order(o.ID); got.State.Status != order.Accepted || got.State.Version != 1 {
		t.Errorf("the order is %s, version %d", got.State.Status, got.State.Version)
	}
	if n := value[int](f, `SELECT count(*) FROM attempts WHERE claim_lost`); n != 1 {
		t.Errorf("%d lost attempts are stored, want 1", n)
	}
	// The new holder got another operation: there are two cards, and that shows.
	f.complete(taken(fresh[0], "fresh-operation"))
	got := f.order(o.ID)
	if got.State.OperationID != "fresh-operation" || !slices.Equal(got.State.Attention, []order.Attention{order.AttentionSecondCard}) {
		t.Errorf("operation %s, attention %v", got.State.OperationID, got.State.Attention)
	}
	if n := value[int](f, `SELECT count(*) FROM outbox`); n != 0 {
		t.Errorf("%d messages are left", n)
	}
}

// The release before writes the end of a lease into run_at: neither takes what the other
// has claimed, and what it left behind is asked about.
func TestClaimsOfTheReleaseBefore(t *testing.T) {
	t.Parallel()
	f := open(t)
	f.accept("card", "request")
	const claim = `UPDATE outbox SET claim_token = gen_random_uuid(), run_at = now() + $1::interval`
	f.exec(claim, 5*time.Minute)
	if m := f.claim(1, time.Minute); len(m) != 0 {
		t.Errorf("claimed at the same time: %+v", m)
	}
	f.exec(claim, -time.Second)
	if m := f.claim(1, time.Minute); len(m) != 1 || !m[0].MaybeSent || m[0].SentAgo < time.Second {
		t.Errorf("taken over as %+v, want an unknown outcome", m)
	}
	if _, err := f.conn.Exec(t.Context(), claim, 5*time.Minute); err == nil {
		t.Error("the release before could claim what is claimed")
	}
}

// A claim writes no entry into an index, as long as no index knows what it changes.
func TestClaimsChangeNoIndex(t *testing.T) {
	t.Parallel()
	f := open(t)
	if n := value[int](f, `SELECT count(*) FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid
		WHERE i.indrelid = 'outbox'::regclass AND a.attname IN ('claim_token', 'leased_until', 'first_sent_at', 'maybe_sent_at')
			AND (a.attnum = ANY (i.indkey) OR pg_get_indexdef(i.indexrelid) LIKE '%' || a.attname || '%')`); n != 0 {
		t.Errorf("%d of them do", n)
	}
}

// An operation of another order is never adopted: that would hide a lost card.
func TestForeignOperationIsNotAdopted(t *testing.T) {
	t.Parallel()
	f := open(t)
	first, second := f.accept("card-1", "r-1"), f.accept("card-2", "r-2")
	messages := f.claim(2, time.Minute)
	f.complete(taken(messages[0], "operation"))
	f.complete(taken(messages[1], "operation"))
	if got := f.order(first.ID).State; got.OperationID != "operation" || len(got.Attention) != 0 {
		t.Errorf("the first order: %+v", got)
	}
	got := f.order(second.ID).State
	if got.OperationID != "" || got.Status != order.OutcomeUnknown || !slices.Contains(got.Attention, order.AttentionForeignOperation) {
		t.Errorf("the second order: %+v", got)
	}
}

// Released messages are due again as if they had never been claimed.
func TestReleasedMessageWasNeverSent(t *testing.T) {
	t.Parallel()
	f := open(t)
	f.accept("card", "request")
	messages := f.claim(1, time.Minute)
	if err := f.Release(t.Context(), messages); err != nil {
		t.Fatal(err)
	}
	if again := f.claim(1, time.Minute); len(again) != 1 || again[0].MaybeSent {
		t.Errorf("claimed again as %+v", again)
	}
}

// A transaction fails whole: an order without its guard or message never exists.
func TestAcceptIsAllOrNothing(t *testing.T) {
	t.Parallel()
	f := open(t)
	f.exec(`ALTER TABLE outbox ADD CONSTRAINT broken CHECK (card_id <> 'broken')`)
	_, err := f.Accept(t.Context(), store.Acceptance{IssuerID: issuer, IdempotencyKey: "k", Client: "test", Request: request("broken", "r")})
	if err == nil {
		t.Fatal("it was accepted")
	}
	for _, table := range []string{"orders", "order_state", "order_payload", "order_events", "card_guard", "idempotency_keys", "outbox"} {
		if n := value[int](f, `SELECT count(*) FROM `+table); n != 0 {
			t.Errorf("%s has %d rows", table, n)
		}
	}
}

func (f *fixture) receive(list ...store.Notification) []store.Outcome {
	f.t.Helper()
	outcomes, err := f.Receive(f.t.Context(), issuer, list)
	if err != nil {
		f.t.Fatal(err)
	}
	return outcomes
}

// sweep tries what waits again; n is what the stored bytes say. It must apply.
func (f *fixture) sweep(n store.Notification) {
	f.t.Helper()
	applied, _, err := f.Sweep(f.t.Context(), nil, func(string, []byte, string) store.Notification { return n })
	if err != nil || applied != 1 {
		f.t.Fatalf("applied %d, %v", applied, err)
	}
}

func notification(i int, operationID, status string) store.Notification {
	raw := fmt.Appendf(nil, `{"n":%d,"operationId":%q,"status":%q}`, i, operationID, status)
	return store.Notification{
		Raw: raw, Content: raw, Operation: "PRODUCE", OperationID: operationID,
		Evidence: order.Report{OperationID: operationID, Operation: order.OperationPending, Status: status},
	}
}

// A notification that cannot be applied is kept, with its order marked; the
// others of its call are applied.
func TestUnappliedNotificationIsKept(t *testing.T) {
	t.Parallel()
	f := open(t)
	good, bad := f.accept("card-1", "r-1"), f.accept("card-2", "r-2")
	for i, m := range f.claim(2, time.Minute) {
		f.complete(taken(m, fmt.Sprintf("operation-%d", i+1)))
	}
	f.exec(`ALTER TABLE order_state ADD CONSTRAINT broken CHECK (status <> 'READY' OR operation_id <> 'operation-2')`)
	outcomes, err := f.Receive(t.Context(), issuer, []store.Notification{
		notification(1, "operation-2", "CARD_PROD_READY"), notification(2, "operation-1", "CARD_PROD_READY"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := []store.Outcome{store.OutcomeUnapplied, store.OutcomeApplied}; !slices.Equal(outcomes, want) {
		t.Errorf("outcomes %v, want %v", outcomes, want)
	}
	if got := f.order(good.ID).State.Status; got != order.Ready {
		t.Errorf("the neighbour is %s", got)
	}
	if got := f.order(bad.ID).State; got.Status != order.Submitted || !slices.Equal(got.Attention, []order.Attention{order.AttentionUnapplied}) {
		t.Errorf("the order is %s, attention %v", got.Status, got.Attention)
	}
}

// What could not be applied is applied when its cause is gone, and the mark goes.
func TestUnappliedNotificationIsTriedAgain(t *testing.T) {
	t.Parallel()
	f := open(t)
	o := f.accept("card", "request")
	f.complete(taken(f.claim(1, time.Minute)[0], "operation"))
	f.exec(`ALTER TABLE order_state ADD CONSTRAINT broken CHECK (status <> 'READY')`)
	n := notification(1, "operation", "CARD_PROD_READY")
	if outcomes := f.receive(n); !slices.Equal(outcomes, []store.Outcome{store.OutcomeUnapplied}) {
		t.Fatalf("outcomes %v", outcomes)
	}
	f.exec(`ALTER TABLE order_state DROP CONSTRAINT broken`)
	f.exec(`UPDATE notifications SET next_try_at = now()`)
	f.sweep(n)
	if got := f.order(o.ID).State; got.Status != order.Ready || len(got.Attention) != 0 {
		t.Errorf("the order is %s, attention %v", got.Status, got.Attention)
	}
}

// Trouble that may pass, as an order that somebody has locked, delays what it
// concerns and loses nothing: the notification is stored, and applied later.
func TestPassingTroubleDelaysOnly(t *testing.T) {
	t.Parallel()
	f := open(t)
	o := f.accept("card", "request")
	f.complete(taken(f.claim(1, time.Minute)[0], "operation"))
	f.exec(`CREATE FUNCTION trouble() RETURNS trigger LANGUAGE plpgsql AS
		$$ BEGIN RAISE EXCEPTION 'canceling statement due to lock timeout' USING ERRCODE = '55P03'; END $$`)
	f.exec(`CREATE TRIGGER trouble BEFORE UPDATE ON order_state EXECUTE FUNCTION trouble()`)
	n := notification(1, "operation", "CARD_PROD_READY")
	if outcomes := f.receive(n); !slices.Equal(outcomes, []store.Outcome{store.OutcomeParked}) {
		t.Fatalf("outcomes %v", outcomes)
	}
	f.exec(`DROP TRIGGER trouble ON order_state`)
	if outcomes := f.receive(n); !slices.Equal(outcomes, []store.Outcome{store.OutcomeRepeated}) {
		t.Errorf("sent again: %v", outcomes)
	}
	f.exec(`UPDATE notifications SET next_try_at = now()`)
	f.sweep(n)
	if got := f.order(o.ID).State; got.Status != order.Ready || len(got.Attention) != 0 {
		t.Errorf("the order is %s, attention %v", got.Status, got.Attention)
	}
}

// What another replica takes in hand at once was parked when it came: whoever counts the
// outcomes knows no other word for it.
func TestParkedNotificationThatAnotherHasInHand(t *testing.T) {
	t.Parallel()
	f := open(t)
	f.submitted("card", "request", "operation")
	f.exec(`CREATE FUNCTION trouble() RETURNS trigger LANGUAGE plpgsql AS
		$$ BEGIN RAISE EXCEPTION 'canceling statement due to lock timeout' USING ERRCODE = '55P03'; END $$`)
	f.exec(`CREATE TRIGGER trouble BEFORE UPDATE ON order_state EXECUTE FUNCTION trouble()`)
	f.exec(`CREATE FUNCTION taken() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.outcome := 'applied'; RETURN NEW; END $$`)
	f.exec(`CREATE TRIGGER taken BEFORE INSERT ON notifications FOR EACH ROW EXECUTE FUNCTION taken()`)
	if outcomes := f.receive(notification(1, "operation", "CARD_PROD_READY")); !slices.Equal(outcomes, []store.Outcome{store.OutcomeParked}) {
		t.Errorf("outcomes %q", outcomes)
	}
}

// D1 may have an order that is new here: notifications that name it were parked.
// It is then asked before anything is sent.
func TestAcceptLooksAtParkedNotifications(t *testing.T) {
	t.Parallel()
	f := open(t)
	n := notification(1, "operation", "CARD_PROD_READY")
	n.IssuerRequestID, n.CardID = "request", "card"
	f.receive(n)
	o := f.accept("card", "request")
	if m := f.claim(1, time.Minute); len(m) != 1 || !m[0].MaybeSent {
		t.Errorf("claimed %+v, want a question", m)
	}
	f.exec(`UPDATE notifications SET next_try_at = now()`)
	f.sweep(n)
	if got := f.order(o.ID).State; got.Status != order.Ready || value[int](f, `SELECT count(*) FROM outbox`) != 0 {
		t.Errorf("the order is %s", got.Status)
	}
}

// Evidence from D1 retires a message also from a worker that has it in hand.
func TestHolds(t *testing.T) {
	t.Parallel()
	f := open(t)
	f.accept("card", "request")
	m := f.claim(1, time.Minute)[0]
	held, err := f.Holds(t.Context(), m)
	if err != nil || !held {
		t.Fatalf("held %v, %v", held, err)
	}
	n := notification(1, "operation", "CARD_PROD_READY")
	n.IssuerRequestID = "request"
	f.receive(n)
	if held, err = f.Holds(t.Context(), m); err != nil || held {
		t.Errorf("held %v after D1's word, %v", held, err)
	}
}

// A worker whose machine slept may believe that it has time left. Nobody has taken over
// yet, but whoever does counts from the end of the lease.
func TestLapsedClaimDoesNotHold(t *testing.T) {
	t.Parallel()
	f := open(t)
	f.accept("card", "request")
	if held, err := f.Holds(t.Context(), f.claim(1, 0)[0]); err != nil || held {
		t.Errorf("held %v after the lease, %v", held, err)
	}
}

// A refusal that comes before a late answer with an operation contradicts it.
func TestRefusedOrderWithAKnownOperation(t *testing.T) {
	t.Parallel()
	f := open(t)
	o := f.accept("card", "request")
	stale := f.claim(1, 0)[0]
	fresh := f.claim(1, time.Minute)[0]
	f.complete(store.Completion{Message: fresh, Attempt: attempt("refused"), Evidence: []order.Evidence{order.Refusal{}}})
	f.complete(taken(stale, "operation"))
	got := f.order(o.ID).State
	if got.Status != order.Rejected || !slices.Contains(got.Attention, order.AttentionContradiction) {
		t.Errorf("the order is %s, attention %v", got.Status, got.Attention)
	}
}

// Two operations of a card that name no request are not both of its one order.
func TestTwoNamelessOperationsInOneCall(t *testing.T) {
	t.Parallel()
	f := open(t)
	o := f.accept("card", "request")
	f.claim(1, time.Minute)
	var list []store.Notification
	for i, operation := range []string{"first", "second", "first"} {
		n := notification(i, operation, "CARD_PROD_READY")
		n.CardID, n.StartTime = "card", time.Now().Add(time.Minute)
		list = append(list, n)
	}
	want := []store.Outcome{store.OutcomeApplied, store.OutcomeParked, store.OutcomeApplied}
	if outcomes := f.receive(list...); !slices.Equal(outcomes, want) {
		t.Errorf("outcomes %v, want %v", outcomes, want)
	}
	if got := f.order(o.ID).State; got.OperationID != "first" || len(got.Attention) != 0 {
		t.Errorf("operation %s, attention %v", got.OperationID, got.Attention)
	}
}

// One operation is one order's: a second order that D1 names beside it is marked,
// not moved, and its message stays.
func TestOneOperationOfTwoOrders(t *testing.T) {
	t.Parallel()
	f := open(t)
	first, second := f.accept("card-1", "r-1"), f.accept("card-2", "r-2")
	a, b := notification(1, "operation", "CARD_PROD_READY"), notification(2, "operation", "CARD_PROD_READY")
	a.IssuerRequestID, b.IssuerRequestID = "r-1", "r-2"
	a.CardID, b.CardID = "card-1", "card-2"
	f.receive(a, b)
	if got := f.order(first.ID).State; got.Status != order.Ready || len(got.Attention) != 0 {
		t.Errorf("the first order is %s, attention %v", got.Status, got.Attention)
	}
	if got := f.order(second.ID).State; got.Status != order.Accepted || !slices.Equal(got.Attention, []order.Attention{order.AttentionForeignOperation}) {
		t.Errorf("the second order is %s, attention %v", got.Status, got.Attention)
	}
	if n := value[int](f, `SELECT count(*) FROM outbox WHERE order_id = $1`, second.ID); n != 1 {
		t.Errorf("the second order has %d messages", n)
	}
}

// A card alone names an order only if that order was sent.
func TestCardOnlyNotificationNeedsASentOrder(t *testing.T) {
	t.Parallel()
	f := open(t)
	o := f.accept("card", "request")
	n := notification(1, "legacy-operation", "CARD_PROD_READY")
	n.CardID, n.StartTime = "card", time.Now().Add(time.Hour)
	if outcomes := f.receive(n); !slices.Equal(outcomes, []store.Outcome{store.OutcomeParked}) {
		t.Errorf("before it was claimed: %v", outcomes)
	}
	m := f.claim(1, time.Minute)[0]
	f.complete(store.Completion{Message: m, Attempt: attempt("not-taken"), Next: store.Next{Unsent: true, Tries: 1}})
	n.Content = []byte("another")
	if outcomes := f.receive(n); !slices.Equal(outcomes, []store.Outcome{store.OutcomeParked}) {
		t.Errorf("after a call that did not reach D1: %v", outcomes)
	}
	m = f.claim(1, time.Minute)[0]
	if m.SentBefore {
		t.Error("the message counts as sent before")
	}
	n.Content = []byte("while the call is under way")
	if outcomes := f.receive(n); !slices.Equal(outcomes, []store.Outcome{store.OutcomeApplied}) {
		t.Errorf("while the call is under way: %v", outcomes)
	}
	if got := f.order(o.ID).State; got.OperationID != "legacy-operation" {
		t.Errorf("operation %q", got.OperationID)
	}
	named := notification(2, "other", "CARD_PROD_READY")
	named.CardID, named.StartTime, named.NotByCard = "card", time.Now().Add(time.Hour), true
	if outcomes := f.receive(named); !slices.Equal(outcomes, []store.Outcome{store.OutcomeIgnored}) {
		t.Errorf("of somebody else's request: %v", outcomes)
	}
}

// An operation that a late answer told of is adopted before anything is sent again.
func TestKnownOperationIsAdoptedBeforeAResend(t *testing.T) {
	t.Parallel()
	f := open(t)
	o := f.accept("card", "request")
	stale := f.claim(1, 0)[0]
	fresh := f.claim(1, time.Minute)[0]
	f.complete(taken(stale, "operation"))
	f.complete(store.Completion{
		Message: fresh, Attempt: attempt("found"), Evidence: []order.Evidence{order.NotFound{}}, Next: store.Next{Maybe: store.MaybeClear},
	})
	if got := f.order(o.ID).State; got.Status != order.Submitted || got.OperationID != "operation" || len(got.Attention) != 0 {
		t.Errorf("the order is %+v", got)
	}
	if n := value[int](f, `SELECT count(*) FROM outbox`); n != 0 {
		t.Error("it would be sent again")
	}
}

// Two claims of one message in one batch: only the one that holds decides.
func TestLostClaimInTheSameBatch(t *testing.T) {
	t.Parallel()
	f := open(t)
	o := f.accept("card", "request")
	stale := f.claim(1, 0)[0]
	fresh := f.claim(1, time.Minute)[0]
	f.complete(
		store.Completion{Message: stale, Attempt: attempt("refused"), Evidence: []order.Evidence{order.Refusal{}}},
		store.Completion{
			Message: fresh, Attempt: attempt("lookup-failed"), Evidence: []order.Evidence{order.LostAnswer{}},
			Next: store.Next{RunIn: time.Minute, Asks: 1},
		})
	if got := f.order(o.ID).State; got.Status != order.OutcomeUnknown {
		t.Errorf("the order is %s", got.Status)
	}
	if lost, left := value[int](f, `SELECT count(*) FROM attempts WHERE claim_lost`), value[int](f, `SELECT count(*) FROM outbox`); lost != 1 || left != 1 {
		t.Errorf("%d attempts lost, %d messages left", lost, left)
	}
}

// A card that was shipped after all is not created again either.
func TestCreationWindowAfterAContradiction(t *testing.T) {
	t.Parallel()
	f := open(t)
	f.accept("card", "request")
	f.complete(taken(f.claim(1, time.Minute)[0], "operation"))
	failed := notification(1, "operation", "CARD_PROD_EXCEPTION")
	failed.Evidence = order.Report{OperationID: "operation", Operation: order.OperationFailed, Status: "CARD_PROD_EXCEPTION"}
	f.receive(failed)
	f.receive(notification(2, "operation", "CARD_PROD_DONE"), notification(3, "operation", "CARD_SHIPPED"))
	_, err := f.Accept(t.Context(), store.Acceptance{IssuerID: issuer, Client: "test", Request: request("card", "again")})
	if c, ok := errors.AsType[*store.ConflictError](err); !ok || c.Kind != store.DuplicateOrder {
		t.Errorf("a second creation: %v", err)
	}
}

// Calls with the same notifications in other orders, all at once, are stored
// once and block nobody.
func TestConcurrentReceive(t *testing.T) {
	t.Parallel()
	f := open(t)
	var list []store.Notification
	for i := range 10 {
		f.accept(fmt.Sprintf("card-%d", i), fmt.Sprintf("r-%d", i))
	}
	for i, m := range f.claim(10, time.Minute) {
		operationID := fmt.Sprintf("operation-%d", i)
		f.complete(taken(m, operationID))
		list = append(list, notification(i, operationID, "CARD_PROD_ONGOING"))
	}
	reversed := slices.Clone(list)
	slices.Reverse(reversed)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if _, err := f.Receive(t.Context(), issuer, [][]store.Notification{list, reversed}[i%2]); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := value[int](f, `SELECT count(*) FROM notifications WHERE times_seen = 8 AND outcome = 'applied'`); n != 10 {
		t.Errorf("%d notifications were seen 8 times and applied once, want 10", n)
	}
	if n := value[int](f, `SELECT count(*) FROM order_state WHERE status = 'IN_PRODUCTION' AND version = 3`); n != 10 {
		t.Errorf("%d orders are in production at version 3, want 10", n)
	}
}

// A schema that is not current is seen, and migrating twice at once is one migration.
func TestMigrations(t *testing.T) {
	t.Parallel()
	url := pgtest.NewEmpty(t)
	st, err := store.Open(t.Context(), store.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if current, err := st.SchemaCurrent(t.Context()); err != nil || current {
		t.Errorf("an empty database is current: %v %v", current, err)
	}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if err := store.Migrate(t.Context(), url); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if current, err := st.SchemaCurrent(t.Context()); err != nil || !current {
		t.Errorf("a migrated database is not current: %v %v", current, err)
	}
	list, err := store.Migrations(t.Context(), url)
	if err != nil || len(list) == 0 || slices.ContainsFunc(list, func(m store.Migration) bool { return !m.Applied }) {
		t.Errorf("migrations %+v, %v", list, err)
	}
}

// The database being away is told apart from a fault of ours.
func TestUnavailable(t *testing.T) {
	t.Parallel()
	st, err := store.Open(t.Context(), store.Config{URL: "postgres://nobody@127.0.0.1:1/none?connect_timeout=2"})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	_, err = st.Order(t.Context(), issuer, uuid.New())
	if err == nil || !store.Unavailable(err) {
		t.Errorf("error %v is not seen as the database being away", err)
	}
	if store.Unavailable(errors.New("a bug")) {
		t.Error("a bug is taken for an outage")
	}
}

// Every statement on a path that runs often has to be fast however many orders
// there are: by an index, and without sorting what it did not need to read.
func TestPlans(t *testing.T) {
	t.Parallel()
	f := open(t)
	f.exec(`
		INSERT INTO orders (issuer_id, id, issuer_request_id, card_id, consumer_id, card_product_id, distribution_channel,
			terms, urgent, warnings, content_hash, content_hash_version, created_by, batch_id, group_id, replaces_order_id)
		SELECT 'ISSUER0001', ('01a20a68-0000-7000-8000-' || lpad(to_hex(i), 12, '0'))::uuid, 'r-' || i, 'card-' || i, 'consumer-' || i / 3, 'p-' || i % 5,
			'THALES', '{"services": {"issuance": "RENEWAL"}}', false, '{}', 'x', 1, 'test',
			CASE WHEN i % 2 = 0 THEN ('01a20a68-0000-7000-9000-' || lpad(to_hex(i / 100), 12, '0'))::uuid END,
			CASE WHEN i % 3 = 0 THEN 'group-' || i / 100 END,
			CASE WHEN i % 100 = 0 THEN ('01a20a68-0000-7000-8000-' || lpad(to_hex(i - 1), 12, '0'))::uuid END
		FROM generate_series(1, 20000) i`)
	f.exec(`INSERT INTO order_state (issuer_id, order_id, version, status, ends_at, ended_at, attention)
		SELECT issuer_id, id, 1, 'SHIPPED', 'SHIPPED', CASE WHEN random() < 0.99 THEN now() END,
			CASE WHEN random() < 0.001 THEN '{failed}'::text[] ELSE '{}' END FROM orders`)
	f.exec(`INSERT INTO operations (issuer_id, operation_id, order_id, operation, source) SELECT issuer_id, 'op-' || issuer_request_id, id, 'PRODUCE', 'answer' FROM orders`)
	f.exec(`INSERT INTO idempotency_keys (issuer_id, key, order_id) SELECT issuer_id, 'k-' || issuer_request_id, id FROM orders`)
	f.exec(`INSERT INTO outbox (lane, kind, issuer_id, order_id, card_id, run_at)
		SELECT 'd1/ISSUER0001', 'submit', issuer_id, id, card_id, now() - random() * interval '1 h' FROM orders`)
	f.exec(`INSERT INTO notifications (issuer_id, digest, body, operation_id, outcome)
		SELECT issuer_id, sha256(id::text::bytea), 'x', 'op', 'applied' FROM orders`)
	f.exec(`INSERT INTO order_payload (issuer_id, order_id, production, encrypted_data) SELECT issuer_id, id, 'x', 'x' FROM orders`)
	f.exec(`INSERT INTO order_events (issuer_id, order_id, seq, type, status, attention, cause)
		SELECT issuer_id, id, 1, 'accepted', 'SHIPPED', '{}', CASE WHEN random() < 0.01 THEN 'reconciliation' ELSE 'request' END FROM orders`)
	f.exec(`INSERT INTO shipments (issuer_id, order_id, tracking_number) SELECT issuer_id, id, issuer_request_id FROM orders`)
	f.exec(`INSERT INTO card_guard (issuer_id, card_id, order_ids) SELECT issuer_id, card_id, ARRAY[id] FROM orders`)
	f.exec(`INSERT INTO order_notes (issuer_id, order_id, id, body, author) SELECT issuer_id, id, id, 'x', 'ada' FROM orders`)
	f.exec(`INSERT INTO order_batches (issuer_id, id, key, status, format, hold, held, digest, created_by)
		SELECT 'ISSUER0001', id, id::text, 'COMPLETED', 'csv', false, false, 'x', 'test'
		FROM generate_series(0, 5000) i, LATERAL (SELECT ('01a20a68-0000-7000-9000-' || lpad(to_hex(i), 12, '0'))::uuid AS id) b`)
	f.exec(`INSERT INTO order_batch_rows (issuer_id, batch_id, line, outcome, order_id)
		SELECT issuer_id, batch_id, row_number() OVER (), 'accepted', id FROM orders WHERE batch_id IS NOT NULL`)
	f.exec(`UPDATE order_state SET status = 'REJECTED', ended_at = NULL WHERE order_id = '01a20a68-0000-7000-8000-000000000002'`)
	f.exec(`UPDATE order_state SET next_check_at = now(), first_sent_at = now() WHERE order_id < '01a20a68-0000-7000-8000-000000000100'`)
	f.exec(`DELETE FROM outbox WHERE order_id = '01a20a68-0000-7000-8000-000000000002'`)
	f.exec(`UPDATE order_state SET late = true WHERE order_id BETWEEN '01a20a68-0000-7000-8000-000000000200' AND '01a20a68-0000-7000-8000-000000000220'`)
	const scheduled = `'01a20a68-0000-7000-8000-000000000010' AND '01a20a68-0000-7000-8000-000000000030'` // their time has come
	f.exec(`UPDATE order_state SET status = 'HELD', hold = 'schedule', ended_at = NULL WHERE order_id BETWEEN ` + scheduled)
	f.exec(`UPDATE orders SET not_before = now() WHERE id BETWEEN ` + scheduled)
	f.exec(`DELETE FROM outbox WHERE order_id BETWEEN ` + scheduled)
	const nameless = `'01a20a68-0000-7000-8000-000000000040' AND '01a20a68-0000-7000-8000-000000000060'`
	f.exec(`UPDATE order_state SET status = 'SUBMITTED', rank = 10, status_since = now() - interval '1 h', ended_at = NULL WHERE order_id BETWEEN ` + nameless)
	f.exec(`DELETE FROM outbox WHERE order_id BETWEEN ` + nameless)
	f.exec(`INSERT INTO order_changes (issuer_id, id, order_id, key, type, state, created_by, expires_at, operation_id)
		SELECT issuer_id, id, id, issuer_request_id, 'CANCEL', CASE WHEN random() < 0.01 THEN 'SENT' ELSE 'ACCEPTED' END, 'test',
			now() + random() * interval '72 h', 'change-' || issuer_request_id FROM orders`)
	f.exec(`VACUUM ANALYZE`)
	batch := uuid.MustParse("01a20a68-0000-7000-9000-000000000007")
	plans := &planner{}
	st := f.traced(plans)
	ruled := f.with(store.Config{Tracer: plans, ConsumerLimits: func(string) map[string]int {
		return map[string]int{"p-0": 9, "p-1": 9, "p-2": 9, "p-3": 9, "p-4": 9}
	}})
	list := func(filter store.Filter) func() error {
		filter.Limit = 50
		return func() error { _, err := st.Orders(t.Context(), issuer, filter); return err }
	}
	claimed, err := st.Claim(t.Context(), store.ClaimRequest{Lane: lane, Class: store.ClassSingle, Limit: 10, Lease: time.Minute})
	if err != nil || len(claimed) != 10 {
		t.Fatal(len(claimed), err)
	}
	f.exec(`INSERT INTO lanes (lane) VALUES ($1)`, lane)
	for name, run := range map[string]func() error{
		"claim": func() error {
			_, err := st.Claim(t.Context(), store.ClaimRequest{Lane: lane, Class: store.ClassSingle, Limit: 50, Lease: time.Minute})
			return err
		},
		"list":                            list(store.Filter{}),
		"list by card":                    list(store.Filter{CardID: "card-77"}),
		"list by request":                 list(store.Filter{IssuerRequestID: "r-77"}),
		"list by key":                     list(store.Filter{IdempotencyKey: "k-r-77"}),
		"list by operation":               list(store.Filter{OperationID: "op-r-77"}),
		"list by tracking number":         list(store.Filter{TrackingNumber: "r-77"}),
		"list by consumer":                list(store.Filter{ConsumerID: "consumer-77"}),
		"list by batch":                   list(store.Filter{BatchID: batch}),
		"list by group":                   list(store.Filter{GroupID: "group-7"}),
		"list by product":                 list(store.Filter{CardProductID: "p-3"}),
		"list by channel":                 list(store.Filter{Channel: order.ChannelThales}),
		"list late":                       list(store.Filter{Late: true}),
		"list late, by product":           list(store.Filter{Late: true, CardProductID: "p-3"}),
		"list late, page":                 list(store.Filter{Late: true, Before: uuid.MustParse("01a20a68-0000-7000-8000-000000000210")}),
		"list attention":                  list(store.Filter{Attention: store.AnyAttention}),
		"list open":                       list(store.Filter{Statuses: []order.Status{order.Held, order.Rejected}}),
		"list shipped":                    list(store.Filter{Statuses: []order.Status{order.Shipped}}),
		"list of a day":                   list(store.Filter{CreatedFrom: time.Now().Add(-time.Hour), CreatedTo: time.Now()}),
		"list page":                       list(store.Filter{Before: uuid.MustParse("01a20a68-0000-7000-8000-000000009000")}),
		"list by consumer and status":     list(store.Filter{ConsumerID: "consumer-77", Statuses: []order.Status{order.Shipped}}),
		"list by consumer, of a day":      list(store.Filter{ConsumerID: "consumer-77", CreatedFrom: time.Now().Add(-time.Hour)}),
		"list by batch and status":        list(store.Filter{BatchID: batch, Statuses: []order.Status{order.Held}}),
		"list by batch, page":             list(store.Filter{BatchID: batch, Before: uuid.MustParse("01a20a68-0000-7000-8000-000000009000")}),
		"list by group and attention":     list(store.Filter{GroupID: "group-7", Attention: store.AnyAttention}),
		"list by card and channel":        list(store.Filter{CardID: "card-77", Channel: order.ChannelInstant}),
		"list by product, open":           list(store.Filter{CardProductID: "p-3", Statuses: []order.Status{order.Held}}),
		"list by tracking number, status": list(store.Filter{TrackingNumber: "r-77", Statuses: []order.Status{order.Shipped}}),
		"batches":                         func() error { _, err := st.Batches(t.Context(), issuer, "", uuid.Nil, 50); return err },
		"batch by key":                    func() error { _, err := st.Batches(t.Context(), issuer, batch.String(), uuid.Nil, 50); return err },
		"batch results":                   func() error { _, err := st.BatchResults(t.Context(), issuer, batch, "", 7000, 100); return err },
		"batch action":                    func() error { _, err := st.Act(t.Context(), issuer, batch, store.BatchHold, "test"); return err },
		"accept": func() error {
			_, err := st.Accept(t.Context(), acceptance("card-x", "r-x", "k-x"))
			return err
		},
		"replay": func() error {
			_, err := st.Accept(t.Context(), acceptance("card-77", "r-77", "k-x"))
			if kind, _ := conflictOf(err); kind != store.ContentDiffers {
				return err
			}
			return nil
		},
		"duplicate": func() error {
			_, err := st.Accept(t.Context(), acceptance("card-77", "r-y", "k-y"))
			if kind, _ := conflictOf(err); kind != store.DuplicateOrder {
				return err
			}
			return nil
		},
		"one": func() error {
			_, err := st.Order(t.Context(), issuer, uuid.MustParse("01a20a68-0000-7000-8000-000000000001"))
			return err
		},
		"known card": func() error { _, err := st.KnownCard(t.Context(), issuer, "card-77", -time.Hour*24*365); return err },
		"drift": func() error {
			_, err := st.Drift(t.Context(), issuer, store.DriftFilter{From: time.Now().Add(-time.Hour), To: time.Now(), Limit: 50})
			return err
		},
		"drift page": func() error {
			_, err := st.Drift(t.Context(), issuer, store.DriftFilter{Before: store.DriftPlace{At: time.Now(), Seq: 3}, Limit: 50})
			return err
		},
		"owners": func() error {
			_, err := st.Owners(t.Context(), issuer, []string{"op-r-1", "op-r-2"}, []string{"r-1", "r-2"})
			return err
		},
		"check": func() error {
			done, err := st.Check(t.Context(), issuer, 50000)
			if err == nil && (done.Released < 30 || done.Asked < 30) {
				t.Errorf("checked %+v", done)
			}
			return err
		},
		"adopt": func() error {
			_, err := st.Adopt(t.Context(), issuer, uuid.MustParse("01a20a68-0000-7000-8000-000000001000"))
			return err
		},
		"refresh": func() error {
			_, err := st.Refresh(t.Context(), action(uuid.MustParse("01a20a68-0000-7000-8000-000000000001")))
			return err
		},
		"retry": func() error {
			_, err := st.Retry(t.Context(), store.Retry{Action: action(uuid.MustParse("01a20a68-0000-7000-8000-000000000002"))})
			return err
		},
		"hold and release": func() error {
			h := hold(uuid.MustParse("01a20a68-0000-7000-8000-000000000003"), "")
			f.exec(`UPDATE order_state SET status = 'ACCEPTED', ended_at = NULL WHERE order_id = $1`, h.OrderID)
			f.exec(`DELETE FROM operations WHERE order_id = $1`, h.OrderID)
			if _, err := st.HoldOrder(t.Context(), h); err != nil {
				return err
			}
			h.DuplicateOverride = "why"
			_, err := st.ReleaseOrder(t.Context(), h)
			return err
		},
		"reorder": func() error {
			id := uuid.MustParse("01a20a68-0000-7000-8000-000000000005")
			f.exec(`UPDATE order_state SET status = 'FAILED' WHERE order_id = $1`, id)
			f.exec(`UPDATE card_guard SET order_ids = '{}' WHERE card_id = 'card-5'`)
			a := acceptance("card-5", "", "reorder")
			a.Request.ReplacesOrderID = id.String()
			_, err := st.Reorder(t.Context(), store.Reorder{Action: action(id), Acceptance: a})
			return err
		},
		"note and timeline": func() error {
			a := action(uuid.MustParse("01a20a68-0000-7000-8000-000000000002"))
			if _, _, err := st.AddNote(t.Context(), store.NewNote{Action: a, Key: "k", Text: "x"}); err != nil {
				return err
			}
			_, err := st.Timeline(t.Context(), issuer, a.OrderID)
			return err
		},
		"clear": func() error {
			id := uuid.MustParse("01a20a68-0000-7000-8000-000000000004")
			f.exec(`UPDATE order_state SET attention = '{second-card}' WHERE order_id = $1`, id)
			_, err := st.ClearAttention(t.Context(), store.Clearance{Action: action(id), Attention: order.AttentionSecondCard, Note: "x"})
			return err
		},
		"list one attention": list(store.Filter{Attention: order.AttentionFailed}),
		"admit": func() error {
			f.exec(`UPDATE outbox SET admitted_at = NULL`)
			m := slices.Clone(claimed[6:8])
			m[0].SentBefore, m[1].SentBefore = false, false
			left, err := ruled.Admit(t.Context(), issuer, m)
			if len(left) != 2 {
				t.Errorf("%d are admitted", len(left))
			}
			return err
		},
		"card data": func() error { _, err := st.MarkCardDataNeeded(t.Context(), issuer, []string{"key"}); return err },
		"change": func() error {
			id := uuid.MustParse("01a20a68-0000-7000-8000-000000000041")
			c, _, err := st.PlaceChange(t.Context(), placement(id, order.ChangeAccelerate))
			if err != nil {
				return err
			}
			return st.Complete(t.Context(), []store.Completion{took(store.Message{
				Kind: store.KindChange, IssuerID: issuer, OrderID: id, Change: &store.ChangeMessage{ID: c.ID},
			}, "change-op")})
		},
		"change of what was not sent": func() error {
			_, _, err := st.PlaceChange(t.Context(), placement(uuid.MustParse("01a20a68-0000-7000-8000-000000000020"), order.ChangeCancel))
			return err
		},
		"changes": func() error {
			_, err := st.Changes(t.Context(), issuer, uuid.MustParse("01a20a68-0000-7000-8000-000000000050"), uuid.Nil, 50)
			return err
		},
		"replay of a time": func() error {
			in := store.ReplayRange{From: time.Now().Add(-time.Hour), To: time.Now().Add(time.Hour), Outcome: "none"}
			_, _, err := st.ReplayRange(t.Context(), issuer, in, nil)
			return err
		},
		"changes expire": func() error { _, err := st.ExpireChanges(t.Context()); return err },
		"beat":           func() error { _, err := st.Beat(t.Context(), store.Replica{ID: uuid.New()}); return err },
		"pause":          func() error { _, err := st.PauseLane(t.Context(), lane, "ada", "why"); return err },
		"timeline": func() error {
			f.checkTimeline(st, false)
			f.elsewhere()
			f.checkTimeline(st, true)
			return nil
		},
		"parked": func() error { _, _, err := st.Sweep(t.Context(), nil, nil); return err },
		"probe": func() error {
			f.exec(`UPDATE lanes SET stopped_at = now(), probe_at = now()`)
			_, err := st.ClaimProbe(t.Context(), lane, time.Minute)
			f.exec(`UPDATE lanes SET stopped_at = NULL`)
			return err
		},
		"holds":   func() error { _, err := st.Holds(t.Context(), store.Message{}); return err },
		"release": func() error { return st.Release(t.Context(), claimed[:1]) },
		"taken": func() error {
			return st.Complete(t.Context(), []store.Completion{taken(claimed[1], "op-1"), taken(claimed[2], "op-2")})
		},
		"refused, the lane stops": func() error {
			return st.Complete(t.Context(), []store.Completion{refused(claimed[3], 1)})
		},
		"taken, what was refused is settled": func() error {
			f.exec(`UPDATE lanes SET stopped_at = NULL`)
			f.exec(`UPDATE outbox SET refused_at = now() - interval '2 h', refused_since = now() - interval '2 h' WHERE id = $1`, claimed[5].ID)
			f.exec(`UPDATE outbox SET claim_token = NULL WHERE id = $1`, claimed[5].ID)
			return st.Complete(t.Context(), []store.Completion{taken(claimed[4], "op-4")})
		},
	} {
		plans.reset()
		if err := run(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, plan := range plans.explain(f) {
			if strings.Contains(smallTables.Replace(plan), "Seq Scan") {
				t.Errorf("%s reads a whole table:\n%s", name, plan)
			}
		}
	}
}

// smallTables have some rows and no more, whatever happens.
var smallTables = strings.NewReplacer("Seq Scan on database_history", "", "Seq Scan on replicas", "", "Seq Scan on lanes", "")

// planner collects the statements that a store runs, to explain them.
type planner struct {
	mu         sync.Mutex
	statements []statement
}

type statement struct {
	sql  string
	args []any
}

func (p *planner) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	p.saw(data.SQL, data.Args)
	return ctx
}

func (p *planner) TraceBatchStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceBatchStartData) context.Context {
	for _, q := range data.Batch.QueuedQueries {
		p.saw(q.SQL, q.Arguments)
	}
	return ctx
}

func (*planner) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

func (*planner) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}

func (p *planner) saw(sql string, args []any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if verb := strings.Fields(sql)[0]; slices.Contains([]string{"SELECT", "WITH", "INSERT", "UPDATE", "DELETE"}, verb) {
		p.statements = append(p.statements, statement{sql, args})
	}
}

func (*planner) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (p *planner) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.statements = nil
}

func (p *planner) explain(f *fixture) []string {
	f.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.statements) == 0 {
		f.t.Error("no statement was seen")
	}
	// Each statement is explained for its arguments and for any, under the settings that
	// were made before it.
	tx, err := f.conn.Begin(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(f.t.Context(), `SET LOCAL plan_cache_mode = force_generic_plan`); err != nil {
		f.t.Fatal(err)
	}
	var plans []string
	explain := func(sql string, args ...any) {
		f.t.Helper()
		rows, err := tx.Query(f.t.Context(), sql, args...)
		if err != nil {
			f.t.Fatal(err)
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			f.t.Fatalf("explaining %s: %v", sql, err)
		}
		plans = append(plans, strings.Join(lines, "\n"))
	}
	for i, s := range p.statements {
		if strings.HasPrefix(s.sql, "SELECT set_config") {
			if _, err := tx.Exec(f.t.Context(), s.sql); err != nil {
				f.t.Fatal(err)
			}
			continue
		}
		explain("EXPLAIN "+s.sql, s.args...)
		if len(s.args) == 0 {
			continue
		}
		name := fmt.Sprint("generic_", i)
		if err := tx.Conn().PgConn().Exec(f.t.Context(), "PREPARE "+name+" AS "+s.sql).Close(); err != nil {
			f.t.Fatal(err)
		}
		explain("EXPLAIN EXECUTE " + name + "(" + strings.Repeat("NULL, ", len(s.args)-1) + "NULL)")
		if err := tx.Conn().PgConn().Exec(f.t.Context(), "DEALLOCATE "+name).Close(); err != nil {
			f.t.Fatal(err)
		}
	}
	return plans
}

// analyze runs the statements again, which only read, and tells what each has read.
func (p *planner) analyze(f *fixture) (plans []string) {
	f.t.Helper()
	tx, err := f.conn.Begin(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	for _, s := range p.statements {
		rows, err := tx.Query(f.t.Context(), "EXPLAIN ANALYZE "+s.sql, s.args...)
		if err != nil {
			f.t.Fatal(err)
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			f.t.Fatalf("explaining %s: %v", s.sql, err)
		}
		plans = append(plans, strings.Join(lines, "\n"))
	}
	return plans
}

// traced opens a second store on the same database that tells its statements.
func (f *fixture) traced(tracer pgx.QueryTracer) *store.Store {
	f.t.Helper()
	return f.with(store.Config{Tracer: tracer})
}

// with opens a second store on the same database.
func (f *fixture) with(cfg store.Config) *store.Store {
	f.t.Helper()
	keyset, err := store.NewSealingKeyset()
	if err != nil {
		f.t.Fatal(err)
	}
	if cfg.Seal, err = store.NewSealer(keyset); err != nil {
		f.t.Fatal(err)
	}
	cfg.URL, cfg.HashKeys = f.url, store.HashKeys{Current: make([]byte, 32)}
	st, err := store.Open(f.t.Context(), cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(st.Close)
	return st
}

// An order that somebody has locked holds up its own notification and no other's: all
// are stored at once, and each is applied by itself.
func TestLockedOrderHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	f := open(t)
	locked, free := f.accept("card-1", "r-1"), f.accept("card-2", "r-2")
	for i, m := range f.claim(2, time.Minute) {
		f.complete(taken(m, fmt.Sprintf("operation-%d", i+1)))
	}
	tx, err := f.conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(t.Context(), `SELECT FROM order_state WHERE order_id = $1 FOR UPDATE`, locked.ID); err != nil {
		t.Fatal(err)
	}
	a, b := notification(1, "operation-1", "CARD_PROD_READY"), notification(2, "operation-2", "CARD_PROD_READY")
	if outcomes := f.receive(a, b); !slices.Equal(outcomes, []store.Outcome{store.OutcomeParked, store.OutcomeApplied}) {
		t.Errorf("outcomes %v", outcomes)
	}
	if got := f.order(free.ID).State.Status; got != order.Ready {
		t.Errorf("the other order is %s", got)
	}
	if _, err := tx.Exec(t.Context(), `UPDATE notifications SET next_try_at = now() WHERE operation_id = 'operation-1'`); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.sweep(a)
	if got := f.order(locked.ID).State.Status; got != order.Ready {
		t.Errorf("the order is %s", got)
	}
}

// Lists that take long leave connections to what must not wait, however many they are.
func TestSlowListsLeaveConnections(t *testing.T) {
	t.Parallel()
	f := open(t)
	tx, err := f.conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `LOCK TABLE shipments`); err != nil {
		t.Fatal(err)
	}
	ctx, giveUp := context.WithCancel(t.Context())
	var lists sync.WaitGroup
	for range 40 { // more than there are connections
		lists.Go(func() { _, _ = f.Orders(ctx, issuer, store.Filter{Limit: 1}) })
	}
	waiting := `SELECT count(*) FROM pg_locks WHERE relation = 'shipments'::regclass AND NOT granted`
	for value[int](f, waiting) == 0 {
		if t.Context().Err() != nil {
			t.Fatal("no list waited")
		}
	}
	const most = 8 // half of them
	for i := range 20 {
		f.accept(fmt.Sprint("card-", i), fmt.Sprint("r-", i))
		if n := value[int](f, waiting); n > most {
			t.Fatalf("%d lists wait at once, want %d at most", n, most)
		}
	}
	giveUp()
	lists.Wait()
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
}
