package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// newTestStub is the stub without a process of its own.
func newTestStub(t *testing.T) *d1Stub {
	t.Helper()
	srv := httptest.NewServer(newStubServer())
	t.Cleanup(srv.Close)
	return &d1Stub{address: srv.Listener.Addr().String()}
}

func (d *d1Stub) mustState(t *testing.T) stubState {
	t.Helper()
	s, err := d.state(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// order posts the order of a card, and returns the status, or what went wrong.
func (d *d1Stub) order(ctx context.Context, card string) (string, error) {
	url := "http://" + d.address + "/banking/v1/issuers/" + issuerID + "/physicalCards/" + card + "/operations:production"
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(`{"issuerRequestId":"`+markRequest+`"}`))
	if err != nil {
		return "", err
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return "", err
	}
	return res.Status, res.Body.Close()
}

func TestStubKeepsAnswersBack(t *testing.T) {
	t.Parallel()
	d := newTestStub(t)
	answers := make(chan string, 3)
	for _, card := range []string{"a", "b", "c"} {
		go func() {
			status, err := d.order(t.Context(), card)
			if err != nil {
				status = err.Error()
			}
			answers <- status
		}()
	}
	waiting := func(n int64) func(stubState) bool { return func(s stubState) bool { return s.Waiting == n } }
	if err := d.await(t.Context(), "three", waiting(3)); err != nil {
		t.Fatal(err)
	}
	if err := d.control(t.Context(), stubControl{Limit: 2}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if status := <-answers; status != "202 Accepted" {
			t.Error(status)
		}
	}
	want := stubState{Received: 3, Answered: 2, Waiting: 1}
	if s := d.mustState(t); s != want {
		t.Errorf("%+v, wanted %+v", s, want)
	}
	if err := d.control(t.Context(), stubControl{Limit: 3, Delay: time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	if status := <-answers; status != "202 Accepted" {
		t.Error(status)
	}
}

func TestStubCounts(t *testing.T) {
	t.Parallel()
	d := newTestStub(t)
	if err := d.control(t.Context(), stubControl{Reset: true, Limit: 10}); err != nil {
		t.Fatal(err)
	}
	before := time.Now()
	for _, card := range []string{"a", "b", "a"} {
		if status, err := d.order(t.Context(), card); err != nil || status != "202 Accepted" {
			t.Fatal(status, err)
		}
	}
	if err := d.call(t.Context(), http.MethodGet, "/physicalCards/a/productionStatus", nil, nil); err != nil {
		t.Fatal(err)
	}
	want := stubState{Received: 3, Answered: 3, Repeats: 1, Others: 1}
	if s := d.mustState(t); s != want {
		t.Errorf("%+v, wanted %+v", s, want)
	}
	arrivals, err := d.arrivals(t.Context())
	if err != nil || len(arrivals) != 2 || arrivals["a"].Before(before.Round(0)) || arrivals["b"].Before(arrivals["a"]) {
		t.Errorf("%v, %v", arrivals, err)
	}
	if err := d.control(t.Context(), stubControl{Reset: true}); err != nil {
		t.Fatal(err)
	}
	if s := d.mustState(t); s != (stubState{}) {
		t.Errorf("after a reset: %+v", s)
	}
}

// A caller who is gone leaves nothing behind that counts after a reset.
func TestStubForgetsCallers(t *testing.T) {
	t.Parallel()
	d := newTestStub(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = d.order(ctx, "a")
	}()
	if err := d.await(t.Context(), "one", func(s stubState) bool { return s.Waiting == 1 }); err != nil {
		t.Fatal(err)
	}
	if err := d.control(t.Context(), stubControl{Reset: true}); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-ended
	if s := d.mustState(t); s != (stubState{}) {
		t.Errorf("%+v", s)
	}
}

func TestBareClient(t *testing.T) {
	t.Parallel()
	d := newTestStub(t)
	if _, err := d.sample(t.Context()); err == nil {
		t.Error("there is no sample yet")
	}
	if err := d.control(t.Context(), stubControl{Limit: 1 << 40}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.order(t.Context(), "first"); err != nil {
		t.Fatal(err)
	}
	sample, err := d.sample(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := newBareClient(d, sample, 4).run(t.Context(), 50, 4); err != nil {
		t.Fatal(err)
	}
	want := stubState{Received: 51, Answered: 51}
	if s := d.mustState(t); s != want {
		t.Errorf("%+v, wanted %+v: each with a card of its own", s, want)
	}
}

func TestBareClientFails(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(srv.Close)
	sample := stubSample{Path: "/physicalCards/first/operations:production", Body: []byte(`{"issuerRequestId":"` + markRequest + `"}`)}
	err := newBareClient(&d1Stub{address: srv.Listener.Addr().String()}, sample, 2).run(t.Context(), 5, 2)
	if err == nil || !strings.Contains(err.Error(), "status 404") {
		t.Error(err)
	}
}

func TestInsertMany(t *testing.T) {
	t.Parallel()
	r := row{table: "outbox", columns: []column{
		{"order_id", "uuid", text("01890000-0000-7000-8000-000000000001")}, {"class", "smallint", text("0")},
		{"run_at", "timestamp with time zone", text("2026-01-02 03:04:05+00")}, {"trying_for", "interval", text("00:00:00")},
		{"halt", "text", nil},
	}}
	c := &captured{orderID: "01890000-0000-7000-8000-000000000001"}
	want := `INSERT INTO "outbox" ("order_id", "class", "run_at", "trying_for", "halt") ` +
		`SELECT (lpad(n::text, 32, '0'))::uuid, 1, now(), ('00' || ':' || '00' || ':' || '00')::interval, NULL FROM generate_series(1, 2) n`
	if got := c.insertMany(r, manyOrders, "generate_series(1, 2) n", map[string]string{"outbox.class": "1"}); got != want {
		t.Errorf("got %s", got)
	}
}
