package api

import (
	"context"
	"log/slog"
	"net/http"
	"regexp"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"cardorder/internal/order"
	"cardorder/internal/store"
)

// Metrics counts requests on all listeners, and notifications.
type Metrics struct {
	requests      *prometheus.CounterVec
	duration      *prometheus.HistogramVec
	notifications *prometheus.CounterVec
	refused       *prometheus.CounterVec
	ignored       *prometheus.CounterVec
	unknown       *prometheus.CounterVec
	batchRows     *prometheus.CounterVec
	panics        prometheus.Counter
}

// NewMetrics registers the metrics of the HTTP side.
func NewMetrics(r prometheus.Registerer, issuers []string) *Metrics {
	m := &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cardorder_http_requests_total",
			Help: "Requests by listener, route, method and status.",
		}, []string{"listener", "route", "method", "status"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "cardorder_http_request_duration_seconds",
			Help:    "Time to answer a request.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}, []string{"listener", "route"}),
		notifications: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cardorder_notifications_total",
			Help: "Operations in D1's notifications by issuer and what became of them.",
		}, []string{"issuer", "outcome"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cardorder_notification_calls_refused_total",
			Help: "Calls to the listener for D1 that were not taken for D1's, by issuer (none where it is not known) and reason.",
		}, []string{"issuer", "reason"}),
		ignored: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cardorder_ignored_notifications_total",
			Help: "Operations in D1's notifications that are about no order of this service, by issuer and D1's kind of operation.",
		}, []string{"issuer", "operation"}),
		unknown: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cardorder_unknown_statuses_total",
			Help: "Operations in D1's notifications with a status that is not known here, by issuer; repeats apart.",
		}, []string{"issuer"}),
		batchRows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cardorder_batch_rows_total",
			Help: "Rows of batches by issuer and what became of them.",
		}, []string{"issuer", "outcome"}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "cardorder_http_panics_total",
			Help: "Requests that ended in a panic: each is a bug.",
		}),
	}
	for _, issuer := range issuers {
		for _, outcome := range notificationOutcomes {
			m.notifications.WithLabelValues(issuer, string(outcome))
		}
		m.unknown.WithLabelValues(issuer)
		for _, reason := range refusals {
			m.refused.WithLabelValues(issuer, string(reason))
		}
		for _, operation := range d1Operations {
			m.ignored.WithLabelValues(issuer, operation)
		}
		for _, outcome := range store.RowOutcomes {
			m.batchRows.WithLabelValues(issuer, string(outcome))
		}
	}
	m.refused.WithLabelValues("", string(refusedCredentials))
	r.MustRegister(m.requests, m.duration, m.notifications, m.refused, m.ignored, m.unknown, m.batchRows, m.panics)
	return m
}

type contextKey int

const (
	correlationKey contextKey = iota
	wideKey
)

// wide is the request's log line, filled in as the request goes on.
type wide struct{ attrs []slog.Attr }

// annotate adds ids to the request's log line: ids only, never content.
func annotate(ctx context.Context, attrs ...slog.Attr) {
	if line, ok := ctx.Value(wideKey).(*wide); ok {
		line.attrs = append(line.attrs, attrs...)
	}
}

func correlationID(ctx context.Context) string {
	id, _ := ctx.Value(correlationKey).(string)
	return id
}

// correlationPattern is what is taken over from a caller; it goes to logs.
var correlationPattern = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// callersCorrelationID is the caller's id if it is fit for a log: it must not
// hold a card number either.
func callersCorrelationID(r *http.Request, guard func() order.PANGuard) string {
	id := r.Header.Get("X-Correlation-Id")
	if !correlationPattern.MatchString(id) || guard().Finds(id, true) {
		return ""
	}
	return id
}

// guard finds the card numbers of all issuers.
func (c *Config) guard() order.PANGuard {
	var g order.PANGuard
	for i := range c.Issuers {
		g.BINs = append(g.BINs, c.Rules(c.Issuers[i].ID).Guard.BINs...)
	}
	return g
}

// observe gives every request a correlation id, a log line, its metrics, and an
// end that no panic crosses.
func observe(listener string, cfg Config) func(http.Handler) http.Handler {
	log, m, guard := cfg.Log, cfg.Metrics, sync.OnceValue(cfg.guard)
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			started := time.Now()
			id := callersCorrelationID(r, guard)
			if id == "" {
				id = uuid.NewString()
			}
			w.Header().Set("X-Correlation-Id", id)
			line := &wide{}
			ctx := context.WithValue(context.WithValue(r.Context(), correlationKey, id), wideKey, line)
			r = r.WithContext(ctx)
			recorder := &statusRecorder{ResponseWriter: w}
			defer func() {
				p := recover()
				aborted := p == http.ErrAbortHandler //nolint:errorlint // net/http compares it so
				if p != nil && !aborted {
					m.panics.Inc()
					log.Error("panic while answering a request", "correlationId", id, "panic", p, "stack", string(debug.Stack()))
					if recorder.status == 0 {
						writeProblem(recorder, r, errInternal)
					}
				}
				route := chi.RouteContext(ctx).RoutePattern()
				if route == "" {
					route = "none"
				}
				took := time.Since(started)
				m.requests.WithLabelValues(listener, route, method(r.Method), strconv.Itoa(recorder.status)).Inc()
				m.duration.WithLabelValues(listener, route).Observe(took.Seconds())
				attrs := []slog.Attr{
					slog.String("listener", listener), slog.String("method", method(r.Method)), slog.String("route", route),
					slog.Int("status", recorder.status), slog.Float64("durationMs", float64(took.Microseconds())/1e3), slog.String("correlationId", id),
				}
				log.LogAttrs(ctx, slog.LevelInfo, "request", append(attrs, line.attrs...)...)
				if aborted {
					panic(http.ErrAbortHandler) // net/http cuts the connection
				}
			}()
			next.ServeHTTP(recorder, r)
		})
	}
}

// method keeps a caller from inventing label values.
func method(m string) string {
	switch m {
	case http.MethodGet, http.MethodPost, http.MethodHead, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return m
	}
	return "other"
}

type statusRecorder struct {
	http.ResponseWriter
	status int
}

func (s *statusRecorder) WriteHeader(status int) {
	if s.status == 0 {
		s.status = status
	}
	s.ResponseWriter.WriteHeader(status)
}

func (s *statusRecorder) Write(b []byte) (int, error) {
	if s.status == 0 {
		s.status = http.StatusOK
	}
	return s.ResponseWriter.Write(b)
}

func (s *statusRecorder) Unwrap() http.ResponseWriter { return s.ResponseWriter }
