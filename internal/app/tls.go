package app

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"cardorder/internal/api"
	"cardorder/internal/config"
)

// serverTLS is a listener's side of TLS. Its files are read again when they change, so
// that certificates and authorities rotate without a restart. Files that are not right
// change nothing: D1 must not be turned away, nor anybody else let in, by a mistake.
type serverTLS struct {
	listener string
	files    *config.TLS
	auth     tls.ClientAuthType
	log      *slog.Logger
	failed   *prometheus.CounterVec
	now      atomic.Pointer[tls.Config]
	outcome  atomic.Pointer[outcome]

	mu     sync.Mutex // one reload at a time
	steady steady
}

// steady tells when something that changes has come to rest.
type steady struct{ tried, changed string }

// look tells whether a state is another one than was tried last, and the same as at the
// last look: what is half written may be right and say something else.
func (s *steady) look(state string) (due bool) {
	due = state == s.changed && state != s.tried
	s.changed = state
	return due
}

func newServerTLS(listener string, files *config.TLS, log *slog.Logger, failed *prometheus.CounterVec) (*serverTLS, error) {
	t := &serverTLS{listener: listener, files: files, auth: tls.NoClientCert, log: log, failed: failed}
	if files.ClientCAFile != "" {
		t.auth = tls.RequireAndVerifyClientCert
	}
	for _, reason := range handshakeFailures {
		failed.WithLabelValues(listener, reason.label)
	}
	t.steady.tried = t.state()
	loaded, err := files.Server()
	if err != nil {
		return nil, err
	}
	t.use(loaded)
	return t, nil
}

// makeOptional lets callers without a client certificate in: who needs one is told by
// what is behind.
func (t *serverTLS) makeOptional() {
	t.auth = tls.VerifyClientCertIfGiven
	t.use(t.now.Load())
}

func (t *serverTLS) use(loaded *tls.Config) {
	next := loaded.Clone()
	if next.ClientCAs != nil {
		next.ClientAuth = t.auth
	}
	t.now.Store(next)
	t.outcome.Store(&outcome{ok: true, lastOK: time.Now()})
}

// wrap makes a listener speak TLS as the files say at each connection.
func (t *serverTLS) wrap(l net.Listener) net.Listener {
	first := t.now.Load().Clone()
	first.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return t.now.Load(), nil }
	return tls.NewListener(l, first)
}

// authorities are those of the client certificates that are trusted now.
func (t *serverTLS) authorities() *x509.CertPool { return t.now.Load().ClientCAs }

// accepted notes on a connection which authorities were trusted when it was made.
func (t *serverTLS) accepted(ctx context.Context, _ net.Conn) context.Context {
	return api.AcceptedUnder(ctx, t.authorities())
}

// state tells one state of the files from another.
func (t *serverTLS) state() string {
	var states []string
	for _, name := range []string{t.files.CertFile, t.files.KeyFile, t.files.ClientCAFile} {
		if name != "" {
			states = append(states, stateOf(os.ReadFile(name)))
		}
	}
	return strings.Join(states, " ")
}

// look reloads files that have changed and stayed so since the last look.
func (t *serverTLS) look() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if state := t.state(); t.steady.look(state) {
		t.apply(state)
	}
}

// reload reads the files at once, changed or not.
func (t *serverTLS) reload() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.apply(t.state())
}

func (t *serverTLS) apply(state string) {
	t.steady = steady{tried: state}
	loaded, err := t.files.Server()
	if err != nil {
		t.outcome.Store(&outcome{lastOK: t.outcome.Load().lastOK})
		t.log.Error("the certificates are not right; what was in effect stays", "listener", t.listener, "error", err)
		return
	}
	t.use(loaded)
	t.log.Info("certificates in effect", "listener", t.listener, "notAfter", t.expiry())
}

// expiry is the end of the server's own certificate.
func (t *serverTLS) expiry() time.Time {
	leaf := t.now.Load().Certificates[0].Leaf
	if leaf == nil {
		return time.Time{}
	}
	return leaf.NotAfter
}

// handshakeFailures are the reasons of metrics, by what crypto/tls says. A caller that
// just hangs up is none: load balancers look whether a port is open.
var handshakeFailures = []struct{ text, label string }{
	{"didn't provide a certificate", "no-certificate"},
	{"certificate has expired or is not yet valid", "certificate-expired"},
	{"signed by unknown authority", "authority"},
	{"", "other"},
}

func (t *serverTLS) count(line string) {
	if !strings.Contains(line, "TLS handshake error") || strings.HasSuffix(line, ": EOF") {
		return
	}
	for _, reason := range handshakeFailures {
		if strings.Contains(line, reason.text) {
			t.failed.WithLabelValues(t.listener, reason.label).Inc()
			return
		}
	}
}

// handshakes counts those that failed: net/http tells of them in its log alone.
type handshakes struct {
	slog.Handler
	of *serverTLS
}

// Enabled lets lines be counted that are not logged.
func (h handshakes) Enabled(context.Context, slog.Level) bool { return true }

// Handle counts a line, and logs it as ever.
func (h handshakes) Handle(ctx context.Context, r slog.Record) error {
	h.of.count(r.Message)
	if !h.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

// certificates are the TLS of all listeners that have it.
type certificates struct {
	failed *prometheus.CounterVec
	list   []*serverTLS
}

func newCertificates(cfg *config.Config, log *slog.Logger) (*certificates, error) {
	c := &certificates{failed: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "cardorder_tls_handshakes_failed_total",
		Help: "TLS handshakes that failed, by listener and reason.",
	}, []string{"listener", "reason"})}
	for _, l := range []struct {
		name string
		tls  *config.TLS
	}{{listenerAdmin, cfg.Admin.TLS}, {listenerNotifications, cfg.Notifications.TLS}, {listenerAPI, cfg.API.TLS}} {
		if l.tls == nil {
			continue
		}
		t, err := newServerTLS(l.name, l.tls, log, c.failed)
		if err != nil {
			return nil, fmt.Errorf("%s: tls: %w", l.name, err)
		}
		c.list = append(c.list, t)
	}
	// The authorities are the listener's, what D1 has to show is each issuer's.
	for i := range cfg.Issuers {
		if t := c.of(listenerNotifications); t != nil && !cfg.Issuers[i].Notifications.WantsCertificate() {
			t.makeOptional()
		}
	}
	return c, nil
}

// of returns the TLS of a listener, nil without one.
func (c *certificates) of(listener string) *serverTLS {
	for _, t := range c.list {
		if t.listener == listener {
			return t
		}
	}
	return nil
}

// authorities are those of D1's client certificate that are trusted now.
func (c *certificates) authorities() *x509.CertPool {
	if t := c.of(listenerNotifications); t != nil {
		return t.authorities()
	}
	return nil
}

// certificatesPoll is how often the files are looked at. Their content counts, not their
// time: Kubernetes exchanges a symbolic link above them.
const certificatesPoll = 2 * time.Second

// watch reloads files that have changed, until ctx ends.
func (c *certificates) watch(ctx context.Context) {
	if len(c.list) == 0 {
		return
	}
	ticker := time.NewTicker(certificatesPoll)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			for _, t := range c.list {
				t.look()
			}
		case <-ctx.Done():
			return
		}
	}
}

func (c *certificates) reload() {
	for _, t := range c.list {
		t.reload()
	}
}

var (
	tlsOK = prometheus.NewDesc("cardorder_tls_last_reload_successful",
		"Whether the last reload of a listener's certificates succeeded; the start counts as one.", []string{"listener"}, nil)
	tlsLastOK = prometheus.NewDesc("cardorder_tls_last_reload_success_timestamp_seconds",
		"When a listener's certificates were last reloaded with success.", []string{"listener"}, nil)
	tlsExpiry = prometheus.NewDesc("cardorder_tls_certificate_expiry_timestamp_seconds",
		"When the server's certificate of a listener expires.", []string{"listener"}, nil)
)

func (c *certificates) Describe(ch chan<- *prometheus.Desc) {
	ch <- tlsOK
	ch <- tlsLastOK
	ch <- tlsExpiry
	c.failed.Describe(ch)
}

func (c *certificates) Collect(ch chan<- prometheus.Metric) {
	for _, t := range c.list {
		gauge := func(d *prometheus.Desc, value float64) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, t.listener)
		}
		last, ok := t.outcome.Load(), 0.0
		if last.ok {
			ok = 1
		}
		gauge(tlsOK, ok)
		gauge(tlsLastOK, float64(last.lastOK.UnixMilli())/1e3)
		gauge(tlsExpiry, float64(t.expiry().Unix()))
	}
	c.failed.Collect(ch)
}

// warnAboutWayIn names at every start what does not tell D1 from others.
func warnAboutWayIn(cfg *config.Config, log *slog.Logger) {
	var proxied, open, anyName []string
	for i := range cfg.Issuers {
		in := &cfg.Issuers[i]
		n := &in.Notifications
		switch {
		case !n.WantsCertificate() && !n.WantsToken():
			open = append(open, in.ID)
		case !n.WantsCertificate():
			proxied = append(proxied, in.ID)
		case !n.WantsToken() && len(n.ClientNames) == 0:
			anyName = append(anyName, in.ID)
		}
	}
	if len(open) > 0 {
		log.Warn("NOBODY HERE TELLS D1 FROM OTHERS: whoever reaches the notification listener can move the orders of these issuers; a proxy in front must demand D1's certificate (notifications.clientCertificate and token are false)", "issuerIds", open)
	}
	if len(proxied) > 0 {
		log.Warn("the notification listener does not demand D1's certificate for these issuers: a proxy in front must (notifications.clientCertificate is false)", "issuerIds", proxied)
	}
	if len(anyName) > 0 {
		log.Warn("any certificate of clientCaFile may notify for these issuers: set notifications.clientNames (notifications.token is false)", "issuerIds", anyName)
	}
	if cfg.Notifications.TLS == nil {
		log.Warn("the notification listener has no TLS: D1's tokens come in clear from the proxy in front of it")
	}
}
