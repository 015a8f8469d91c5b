package api

import (
	"log/slog"
	"testing"

	"cardorder/internal/order"
	"cardorder/internal/store"
)

// A notification on which the reading panics waits as its bytes, like one about an order.
func TestPanicWhileReadingANotification(t *testing.T) {
	t.Parallel()
	s := newServer(Config{
		Log: slog.New(slog.DiscardHandler), Issuers: []Issuer{{ID: "ISSUER0001"}},
		Rules: func(string) *order.Rules { panic("a bug") },
	})
	const raw = `{"operation":"PRODUCE","operationId":"o-1"}`
	for name, n := range map[string]store.Notification{
		"just come": s.parse(s.issuers["ISSUER0001"], []byte(raw), "c-1"),
		"stored":    s.parseStored("ISSUER0001", []byte(raw), "c-1"),
	} {
		if string(n.Raw) != raw || string(n.Content) != raw || n.Operation != store.OperationProduce || n.OperationID != "" || n.CorrelationID != "c-1" {
			t.Errorf("%s: %+v", name, n)
		}
	}
}
