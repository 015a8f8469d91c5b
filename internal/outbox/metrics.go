package outbox

import (
	"github.com/prometheus/client_golang/prometheus"

	"cardorder/internal/d1client"
	"cardorder/internal/store"
)

// Metrics counts what the lanes do.
type Metrics struct {
	attempts *prometheus.CounterVec
	duration *prometheus.HistogramVec
}

// NewMetrics registers the metrics, with every label value of the issuers at zero.
func NewMetrics(r prometheus.Registerer, issuers []string) *Metrics {
	m := &Metrics{
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cardorder_d1_attempts_total",
			Help: "Calls to D1 by issuer, kind (submit, ask) and reason.",
		}, []string{"issuer", "kind", "reason"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "cardorder_d1_attempt_duration_seconds",
			Help:    "Time a call to D1 took, token included.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2, 14),
		}, []string{"issuer", "kind"}),
	}
	for _, issuer := range issuers {
		for _, kind := range []store.AttemptKind{store.AttemptSubmit, store.AttemptAsk} {
			m.duration.WithLabelValues(issuer, string(kind))
			for _, reason := range d1client.Reasons() {
				m.attempts.WithLabelValues(issuer, string(kind), string(reason))
			}
		}
	}
	r.MustRegister(m.attempts, m.duration)
	return m
}

func (m *Metrics) attempt(issuer string, a store.Attempt) {
	m.attempts.WithLabelValues(issuer, string(a.Kind), a.Reason).Inc()
	m.duration.WithLabelValues(issuer, string(a.Kind)).Observe(a.Duration.Seconds())
}
