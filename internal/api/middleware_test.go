package api

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"cardorder/internal/order"
)

// A correlation id goes to logs: it may hold no card number, neither one that begins
// like any card nor one of an issuer's own.
func TestCorrelationID(t *testing.T) {
	t.Parallel()
	handler := NewHandler(Config{
		Issuers: []Issuer{{ID: "ISSUER0001"}, {ID: "ISSUER0002"}},
		Metrics: NewMetrics(prometheus.NewRegistry(), nil), Log: slog.New(slog.DiscardHandler),
		Rules: func(issuer string) *order.Rules {
			return &order.Rules{Guard: order.PANGuard{BINs: map[string][]string{"ISSUER0001": {"111111"}, "ISSUER0002": {"000000"}}[issuer]}}
		},
	})
	for id, kept := range map[string]bool{
		"nightly-31": true, "4f0c2d7e-0000-4000-8000-000000000001": true, "0000000000001": true,
		"0000000000000": false, "run_0000-0000-0000-0": false, "4111-1111-1111-1111": false, "a b": false, "": false,
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/healthz", http.NoBody)
		r.Header.Set("X-Correlation-Id", id)
		a := httptest.NewRecorder()
		handler.ServeHTTP(a, r)
		if got := a.Header().Get("X-Correlation-Id"); (got == id) != kept || got == "" {
			t.Errorf("%q became %q", id, got)
		}
	}
}
