package outbox

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"cardorder/internal/d1client"
	"cardorder/internal/order"
	"cardorder/internal/store"
)

// Metrics counts what the lanes do.
type Metrics struct {
	attempts *prometheus.CounterVec
	duration *prometheus.HistogramVec
	accepted *prometheus.HistogramVec
	breaker  *prometheus.GaugeVec
	inFlight *prometheus.GaugeVec
	share    *prometheus.GaugeVec
	unstored *prometheus.GaugeVec
	lost     *prometheus.CounterVec
	rescued  *prometheus.CounterVec
	raised   *prometheus.CounterVec
	drift    *prometheus.CounterVec
	late     *prometheus.CounterVec
	behind   *prometheus.GaugeVec
	probes   *prometheus.CounterVec
	d1Skew   *prometheus.GaugeVec
	skew     prometheus.Gauge
	replicas prometheus.Gauge
}

// NewMetrics registers the metrics, with every label value of the issuers at zero.
func NewMetrics(r prometheus.Registerer, issuers []string) *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, append([]string{"issuer"}, labels...))
		r.MustRegister(c)
		return c
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, append([]string{"issuer"}, labels...))
		r.MustRegister(g)
		return g
	}
	histogram := func(name, help string, buckets []float64, label string) *prometheus.HistogramVec {
		h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, []string{"issuer", label})
		r.MustRegister(h)
		return h
	}
	m := &Metrics{
		attempts: counter("cardorder_d1_attempts_total", "Calls to D1 by issuer, kind (submit, ask, change) and reason.", "kind", "reason"),
		duration: histogram("cardorder_d1_attempt_duration_seconds", "Time a call to D1 took, token included.",
			prometheus.ExponentialBuckets(0.005, 2, 14), "kind"),
		accepted: histogram("cardorder_accept_to_taken_seconds", "Time from accepting an order to D1's 202, by class (single, batch).",
			prometheus.ExponentialBuckets(0.005, 3, 15), "class"),
		breaker: gauge("cardorder_lane_breaker_state", "1 for the state (closed, open, half-open) of this process's breaker for a direction (sending, asking).",
			"direction", "state"),
		inFlight: gauge("cardorder_lane_in_flight", "Calls to D1 under way in this process."),
		share:    gauge("cardorder_lane_share", "Calls to D1 that this process may have open: its share of sending.concurrency."),
		unstored: gauge("cardorder_lane_unstored", "Calls of this process whose outcome is not stored yet."),
		lost:     counter("cardorder_lane_leases_lost_total", "Calls that ended when another worker had taken their message over."),
		rescued:  counter("cardorder_lane_leases_rescued_total", "Messages taken over from a process whose lease ran out."),
		raised:   counter("cardorder_attention_raised_total", "Orders that newly need a human, by code.", "code"),
		drift:    counter("cardorder_drift_total", "What asking D1 found that no notification had told, by the status that an order turned out to have, attention, or details.", "difference"),
		late:     counter("cardorder_late_total", "Orders that became late, by the status they had.", "status"),
		behind:   gauge("cardorder_looks_behind_seconds", "For how long the first order that has to be looked at, because it may be late, silent or due to be sent, has waited for it."),
		probes:   counter("cardorder_lane_probes_total", "Orders tried while their lane was stopped."),
		d1Skew:   gauge("cardorder_d1_clock_skew_seconds", "By how much this process's clock is behind D1's, to the second."),
		skew: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "cardorder_database_clock_skew_seconds", Help: "By how much this process's clock is behind the database's.",
		}),
		replicas: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "cardorder_live_replicas", Help: "Processes that share the lanes, as this one sees it.",
		}),
	}
	r.MustRegister(m.skew, m.replicas)
	for _, issuer := range issuers {
		m.lane(issuer)
	}
	return m
}

// Attention counts an order that newly needs a human.
func (m *Metrics) Attention(issuer string, a order.Attention) {
	m.raised.WithLabelValues(issuer, string(a)).Inc()
}

// Late counts an order that became late in a status.
func (m *Metrics) Late(issuer string, s order.Status) {
	m.late.WithLabelValues(issuer, string(s)).Inc()
}

// Drift counts what asking D1 found.
func (m *Metrics) Drift(issuer string, d store.Difference) {
	m.drift.WithLabelValues(issuer, string(d)).Inc()
}

// ClaimLost counts a call whose message another worker had taken over.
func (m *Metrics) ClaimLost(issuer string) { m.lost.WithLabelValues(issuer).Inc() }

// laneMetrics are those of one lane, looked up once.
type laneMetrics struct {
	taken                             map[store.Class]prometheus.Observer
	duration                          map[store.AttemptKind]prometheus.Observer
	attempts                          map[attemptLabel]prometheus.Counter
	breaker                           map[breakerLabel]prometheus.Gauge
	inFlight, share, unstored, d1Skew prometheus.Gauge
	behind                            prometheus.Gauge
	rescued, probes                   prometheus.Counter
}

type attemptLabel struct {
	kind   store.AttemptKind
	reason string
}

type breakerLabel struct {
	direction string
	state     breakerState
}

func (m *Metrics) lane(issuer string) *laneMetrics {
	l := &laneMetrics{
		taken:    make(map[store.Class]prometheus.Observer),
		duration: make(map[store.AttemptKind]prometheus.Observer),
		attempts: make(map[attemptLabel]prometheus.Counter),
		breaker:  make(map[breakerLabel]prometheus.Gauge),
		inFlight: m.inFlight.WithLabelValues(issuer), share: m.share.WithLabelValues(issuer),
		unstored: m.unstored.WithLabelValues(issuer), d1Skew: m.d1Skew.WithLabelValues(issuer),
		rescued: m.rescued.WithLabelValues(issuer), probes: m.probes.WithLabelValues(issuer),
		behind: m.behind.WithLabelValues(issuer),
	}
	m.lost.WithLabelValues(issuer)
	for _, a := range order.Attentions() {
		m.raised.WithLabelValues(issuer, string(a))
	}
	for _, s := range order.Statuses {
		if order.HasBudget(s) {
			m.late.WithLabelValues(issuer, string(s))
		}
	}
	for _, d := range store.Differences() {
		m.drift.WithLabelValues(issuer, string(d))
	}
	for _, kind := range []store.AttemptKind{store.AttemptSubmit, store.AttemptAsk, store.AttemptChange} {
		l.duration[kind] = m.duration.WithLabelValues(issuer, string(kind))
		for _, reason := range append(d1client.Reasons(), reasonUnreadableContent) {
			l.attempts[attemptLabel{kind, string(reason)}] = m.attempts.WithLabelValues(issuer, string(kind), string(reason))
		}
	}
	for _, class := range []store.Class{store.ClassSingle, store.ClassBatch} {
		l.taken[class] = m.accepted.WithLabelValues(issuer, class.String())
	}
	for _, d := range []string{direction(false), direction(true)} {
		for _, s := range breakerStates {
			l.breaker[breakerLabel{d, s}] = m.breaker.WithLabelValues(issuer, d, s.String())
		}
	}
	l.breakers(breakerClosed, breakerClosed)
	return l
}

func (l *laneMetrics) attempt(c store.Completion) {
	l.attempts[attemptLabel{c.Attempt.Kind, c.Attempt.Reason}].Inc()
	l.duration[c.Attempt.Kind].Observe(c.Attempt.Duration.Seconds())
}

func (l *laneMetrics) accepted(c store.Class, took time.Duration) {
	if o := l.taken[c]; o != nil {
		o.Observe(took.Seconds())
	}
}

func (l *laneMetrics) breakers(sending, asking breakerState) {
	for label, gauge := range l.breaker {
		is := sending
		if label.direction == direction(true) {
			is = asking
		}
		value := 0.0
		if label.state == is {
			value = 1
		}
		gauge.Set(value)
	}
}
