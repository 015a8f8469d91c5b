package api

import (
	"crypto/sha256"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"cardorder/internal/order"
)

// timed is an answer whose deadlines are counted.
type timed struct {
	*httptest.ResponseRecorder
	toWrite int
}

func (*timed) SetReadDeadline(time.Time) error { return nil }

func (a *timed) SetWriteDeadline(time.Time) error {
	a.toWrite++
	return nil
}

// The upload of a dry run may take longer than the server allows an answer; whatever
// ends it, the caller is told.
func TestEveryDryRunIsAnswered(t *testing.T) {
	t.Parallel()
	stopping := make(chan struct{})
	handler := NewHandler(Config{
		Clients: []Client{{TokenHash: sha256.Sum256([]byte("writer")), Scopes: Scopes, Issuers: []string{"ISSUER0001"}}},
		Issuers: []Issuer{{ID: "ISSUER0001"}}, Stopping: stopping,
		Metrics: NewMetrics(prometheus.NewRegistry(), nil), Log: slog.New(slog.DiscardHandler),
		Rules: func(string) *order.Rules { return &order.Rules{} },
	})
	broken := iotest.ErrReader(io.ErrUnexpectedEOF)
	try := func(body io.Reader, status int, want string) {
		t.Helper()
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/issuers/ISSUER0001/order-batches?dryRun=true", body)
		r.Header.Set("Authorization", "Bearer writer")
		r.Header.Set("Idempotency-Key", "key")
		r.Header.Set("Content-Type", "application/x-ndjson")
		a := &timed{ResponseRecorder: httptest.NewRecorder()}
		handler.ServeHTTP(a, r)
		if text := a.Body.String(); a.Code != status || a.toWrite == 0 || !strings.Contains(text, want) {
			t.Errorf("%d, %d deadlines: %s", a.Code, a.toWrite, text)
		}
	}
	try(strings.NewReader("{}\n"), http.StatusOK, `"refused":1`)
	try(io.MultiReader(strings.NewReader("{}\n"), broken), http.StatusBadRequest, "Nothing was stored.")
	close(stopping)
	try(broken, http.StatusServiceUnavailable, "Nothing was stored.")
}
