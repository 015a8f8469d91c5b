package app

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"cardorder/internal/order"
	"cardorder/internal/store"
)

// adminHandler serves operators: metrics, profiles, health. It has no
// authentication and must not be reachable from outside.
func adminHandler(registry *prometheus.Registry, ready func(context.Context) error, programsDigest func() string) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{Registry: registry}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
		defer cancel()
		if err := ready(ctx); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(struct { // the caller is gone if this fails
			Status         string `json:"status"`
			ProgramsDigest string `json:"programsDigest,omitempty"`
		}{"ok", programsDigest()})
	})
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

// statsCollector reads the backlog from the database at each scrape, so that
// every replica tells the same and none has to remember.
type statsCollector struct {
	store   *store.Store
	issuers []string
	log     *slog.Logger

	messages, due, oldest, age, unknown, refused, givenUp, open, late, attention, waiting, waitingAge *prometheus.Desc
	paused, stopped, deadTuples, oldestSnapshot, oldestSnapshotXIDs, up                               *prometheus.Desc
}

func newStatsCollector(st *store.Store, issuers []string, log *slog.Logger) *statsCollector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("cardorder_"+name, help, labels, nil)
	}
	return &statsCollector{
		store: st, issuers: issuers, log: log,
		messages:           desc("outbox_messages", "Messages to send, by lane and class.", "lane", "class"),
		due:                desc("outbox_due_messages", "Messages that could be sent now, by lane and class.", "lane", "class"),
		oldest:             desc("outbox_oldest_due_seconds", "For how long the oldest due message has waited, by lane and class.", "lane", "class"),
		age:                desc("outbox_oldest_message_seconds", "Age of the oldest message, whatever it waits for, by lane and class.", "lane", "class"),
		unknown:            desc("outbox_unknown_messages", "Messages whose outcome at D1 is unknown, by lane and class.", "lane", "class"),
		refused:            desc("outbox_refused_messages", "Messages set aside after a refusal that need not be their own fault, by lane and class.", "lane", "class"),
		givenUp:            desc("outbox_given_up_messages", "Messages that are not tried any more, by lane and class.", "lane", "class"),
		open:               desc("open_orders", "Orders that have not ended, by issuer and status.", "issuer", "status"),
		attention:          desc("attention_orders", "Orders that need a human, by issuer and code.", "issuer", "code"),
		late:               desc("late_orders", "Orders that are late, by issuer.", "issuer"),
		waiting:            desc("waiting_notifications", "Notifications that wait for their order, or could not be applied yet."),
		waitingAge:         desc("waiting_notifications_oldest_seconds", "Age of the oldest of them."),
		paused:             desc("lane_paused", "1 while a person has paused the issuer's lane.", "issuer"),
		stopped:            desc("lane_stopped", "1 while the issuer's lane is stopped: different orders were refused as if the set-up were wrong.", "issuer"),
		deadTuples:         desc("outbox_dead_tuples", "Dead row versions of the table of messages, as PostgreSQL estimates them."),
		oldestSnapshot:     desc("database_oldest_snapshot_seconds", "Age of the oldest transaction that keeps dead rows from being removed."),
		oldestSnapshotXIDs: desc("database_oldest_snapshot_transactions", "The same in transactions, standbys and replication slots included."),
		up:                 desc("database_up", "Whether the database answered this scrape."),
	}
}

func (c *statsCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		c.messages, c.due, c.oldest, c.age, c.unknown, c.refused, c.givenUp, c.open, c.late, c.attention, c.waiting, c.waitingAge,
		c.paused, c.stopped, c.deadTuples, c.oldestSnapshot, c.oldestSnapshotXIDs, c.up,
	} {
		ch <- d
	}
}

// since is 1 for what has begun and not ended.
func since(begun time.Time) float64 {
	if begun.IsZero() {
		return 0
	}
	return 1
}

// ping tells whether the database answers: too much to count is no outage.
func (c *statsCollector) ping() (up float64) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if c.store.Ping(ctx) == nil {
		up = 1
	}
	return up
}

func (c *statsCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	stats, err := c.store.Stats(ctx)
	var states map[string]store.LaneState
	if err == nil {
		states, err = c.store.Lanes(ctx)
	}
	if err != nil {
		c.log.Warn("reading statistics failed", "error", err)
		gauge(c.up, c.ping())
		return
	}
	gauge(c.up, 1)
	type backlog struct {
		lane  string
		class store.Class
	}
	lanes := make(map[backlog]store.LaneStats)
	for _, l := range stats.Lanes {
		lanes[backlog{l.Lane, l.Class}] = l
	}
	for _, issuer := range c.issuers { // zero too: an absent series raises no alarm
		state := states[store.LaneOf(issuer)]
		gauge(c.paused, since(state.PausedAt), issuer)
		gauge(c.stopped, since(state.StoppedAt), issuer)
		for _, class := range store.Classes {
			if b := (backlog{store.LaneOf(issuer), class}); lanes[b].Lane == "" {
				lanes[b] = store.LaneStats{Lane: b.lane, Class: class}
			}
		}
		gauge(c.late, float64(stats.Late[issuer]), issuer)
		for _, status := range order.Statuses {
			n := stats.Open[store.IssuerStatus{IssuerID: issuer, Status: status}]
			gauge(c.open, float64(n), issuer, string(status))
		}
		for _, a := range order.Attentions() {
			gauge(c.attention, float64(stats.Attention[store.IssuerAttention{IssuerID: issuer, Attention: a}]), issuer, string(a))
		}
	}
	for _, l := range lanes {
		gauge(c.messages, float64(l.Messages), l.Lane, l.Class.String())
		gauge(c.due, float64(l.Due), l.Lane, l.Class.String())
		gauge(c.oldest, l.Oldest.Seconds(), l.Lane, l.Class.String())
		gauge(c.age, l.Age.Seconds(), l.Lane, l.Class.String())
		gauge(c.unknown, float64(l.Unknown), l.Lane, l.Class.String())
		gauge(c.refused, float64(l.Refused), l.Lane, l.Class.String())
		gauge(c.givenUp, float64(l.GivenUp), l.Lane, l.Class.String())
	}
	gauge(c.waiting, float64(stats.Waiting))
	gauge(c.waitingAge, stats.WaitingSince.Seconds())
	gauge(c.deadTuples, float64(stats.DeadTuples))
	gauge(c.oldestSnapshot, stats.OldestSnapshot.Seconds())
	gauge(c.oldestSnapshotXIDs, float64(stats.OldestSnapshotXIDs))
}
