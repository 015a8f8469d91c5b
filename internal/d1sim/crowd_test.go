package d1sim

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// Five thousand cards walk to their end on one goroutine, and every step is told.
func TestCrowd(t *testing.T) {
	t.Parallel()
	const crowd = 5000
	bank := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	t.Cleanup(bank.Close)
	sim, err := New(Config{
		Issuers:  []Issuer{{ID: "bank000001", NotificationsURL: bank.URL}},
		Settings: Settings{StepInterval: Duration(time.Millisecond), MaxPerCall: 100},
		Logger:   slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	ended := make(chan error, 1)
	go func() { ended <- sim.Run(ctx) }()

	for i := range crowd {
		q := &inquiry{record: Request{IssuerID: "bank000001", CardID: fmt.Sprintf("card-%d", i)}}
		sim.accept(q, order{issuerRequestID: fmt.Sprintf("request-%d", i), channel: channelThales, delivery: "STANDARD"})
	}
	if err := sim.Wait(ctx, Condition{Cards: crowd, Status: CardShipped, Idle: true}); err != nil {
		t.Fatal(err)
	}
	told := 0
	for _, d := range sim.Notifications() {
		told += d.Count
	}
	if told != 6*crowd {
		t.Errorf("told of %d steps, want %d", told, 6*crowd)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
