package app

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"cardorder/internal/config"
	"cardorder/internal/order"
)

// programs keeps what orders have to meet as the programs file says, also when
// that changes. A file that is not right changes nothing: what was agreed on
// before is safer than a guess at what was meant.
type programs struct {
	cfg *config.Config
	log *slog.Logger
	now atomic.Pointer[effective]
	// outcome is that of the last reload.
	outcome atomic.Pointer[outcome]

	mu     sync.Mutex // one reload at a time
	steady steady
}

// effective is all that depends on the programs file. It is replaced as a whole,
// so that nobody sees half a change.
type effective struct {
	digest string
	rules  map[string]*order.Rules // by issuer
	limits map[string]issuerLimits
	// perConsumer is how many orders of a consumer are sent in a day, by issuer and card
	// product; those without a limit are absent.
	perConsumer map[string]map[string]int
}

// issuerLimits are the times that an issuer's orders are held to.
type issuerLimits struct {
	products map[string]*order.Limits
	others   *order.Limits // of card products without a program
}

type outcome struct {
	ok     bool
	lastOK time.Time
}

// newPrograms reads the programs file, which has to be right at the start: there
// is nothing yet that could stay in effect.
func newPrograms(cfg *config.Config, log *slog.Logger) (*programs, error) {
	p := &programs{cfg: cfg, log: log}
	loaded, err := cfg.LoadPrograms()
	if err != nil {
		return nil, err
	}
	p.steady.tried = loaded.Digest
	p.use(loaded)
	return p, nil
}

// use puts a state of the file into effect.
func (p *programs) use(loaded *config.Programs) {
	next := &effective{digest: loaded.Digest, rules: make(map[string]*order.Rules), limits: make(map[string]issuerLimits), perConsumer: make(map[string]map[string]int)}
	for i := range p.cfg.Issuers {
		in := &p.cfg.Issuers[i]
		rules := &order.Rules{
			Guard: order.PANGuard{BINs: in.BINs}, IndividualAddress: in.IndividualAddressRequired,
			Programs: loaded.Of(in.ID), ProgramsDigest: loaded.Digest,
		}
		next.rules[in.ID] = rules
		limits, perConsumer := issuerLimits{make(map[string]*order.Limits), in.Sending.Limits()}, make(map[string]int)
		for id, program := range rules.Programs {
			limits.products[id] = program.Limits()
			if n := program.MaxOrdersPerConsumerPerDay; n > 0 {
				perConsumer[id] = n
			}
		}
		next.limits[in.ID], next.perConsumer[in.ID] = limits, perConsumer
		if rules.Programs == nil {
			p.log.Warn("the issuer has no programs: all that D1 takes may be ordered", "issuerId", in.ID)
		}
	}
	p.now.Store(next)
	p.outcome.Store(&outcome{ok: true, lastOK: time.Now()})
	if loaded.Digest != "" {
		p.log.Info("programs in effect", "file", p.cfg.ProgramsFile, "digest", loaded.Digest)
	}
}

// rules returns what the orders of an issuer have to meet now.
func (p *programs) rules(issuerID string) *order.Rules { return p.now.Load().rules[issuerID] }

// digest names the programs file in effect, "" without one.
func (p *programs) digest() string { return p.now.Load().digest }

// duplicateWindow is that of a card product's program, or the issuer's where
// there is none (any more).
func (p *programs) duplicateWindow(issuerID, cardProductID string) time.Duration {
	if rules := p.rules(issuerID); rules != nil {
		if program := rules.Programs[cardProductID]; program != nil {
			return program.DuplicateWindow
		}
	}
	for i := range p.cfg.Issuers {
		if p.cfg.Issuers[i].ID == issuerID {
			return p.cfg.Issuers[i].DuplicateWindow
		}
	}
	return 0 // the store's default, for an issuer that is not configured any more
}

// changeTimeout is for how long D1 may leave a change of an issuer's orders unanswered.
func changeTimeout(cfg *config.Config) func(issuerID string) time.Duration {
	timeouts := make(map[string]time.Duration, len(cfg.Issuers))
	for i := range cfg.Issuers {
		timeouts[cfg.Issuers[i].ID] = cfg.Issuers[i].Sending.ChangeTimeout
	}
	return func(issuerID string) time.Duration { return timeouts[issuerID] }
}

// limits are the times that the orders of a card product are held to, nil for none.
func (p *programs) limits(issuerID, cardProductID string) *order.Limits {
	in := p.now.Load().limits[issuerID]
	if limits := in.products[cardProductID]; limits != nil {
		return limits
	}
	return in.others
}

// consumerLimits tells how many orders of a consumer are sent in a day, by card product.
func (p *programs) consumerLimits(issuerID string) map[string]int {
	return p.now.Load().perConsumer[issuerID]
}

// reload reads the file at once, changed or not.
func (p *programs) reload() {
	if p.cfg.ProgramsFile == "" {
		p.log.Warn("there is nothing to reload: programsFile is not set")
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	text, err := p.cfg.ReadPrograms()
	p.apply(text, err)
}

// programsPoll is how often the file is looked at. Its content counts, not its
// time: Kubernetes exchanges a symbolic link above it.
const programsPoll = 2 * time.Second

// watch reloads the file when it has changed, until ctx ends.
func (p *programs) watch(ctx context.Context) {
	if p.cfg.ProgramsFile == "" {
		return
	}
	ticker := time.NewTicker(programsPoll)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			p.look()
		case <-ctx.Done():
			return
		}
	}
}

// look reloads a file that has changed and stayed so since the last look.
func (p *programs) look() {
	p.mu.Lock()
	defer p.mu.Unlock()
	text, err := p.cfg.ReadPrograms()
	if p.steady.look(stateOf(text, err)) {
		p.apply(text, err)
	}
}

// stateOf tells one state of the file from another.
func stateOf(text []byte, err error) string {
	if err != nil {
		return err.Error()
	}
	digest := sha256.Sum256(text)
	return hex.EncodeToString(digest[:])
}

func (p *programs) apply(text []byte, err error) {
	p.steady = steady{tried: stateOf(text, err)}
	var loaded *config.Programs
	if err == nil {
		loaded, err = p.cfg.ParsePrograms(text)
	}
	if err != nil {
		p.outcome.Store(&outcome{lastOK: p.outcome.Load().lastOK})
		p.log.Error("the programs file is not right; what was in effect stays",
			"file", p.cfg.ProgramsFile, "digest", p.digest(), "error", err)
		return
	}
	p.use(loaded)
}

var (
	programsInfo = prometheus.NewDesc("cardorder_programs_info",
		"1 for the programs file in effect, by the SHA-256 of its content.", []string{"digest"}, nil)
	programsOK = prometheus.NewDesc("cardorder_programs_last_reload_successful",
		"Whether the last reload of the programs file succeeded; the start counts as one.", nil, nil)
	programsLastOK = prometheus.NewDesc("cardorder_programs_last_reload_success_timestamp_seconds",
		"When the programs file was last reloaded with success.", nil, nil)
)

func (p *programs) Describe(ch chan<- *prometheus.Desc) {
	ch <- programsInfo
	ch <- programsOK
	ch <- programsLastOK
}

// Collect tells nothing where there is no programs file.
func (p *programs) Collect(ch chan<- prometheus.Metric) {
	if p.cfg.ProgramsFile == "" {
		return
	}
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	last, ok := p.outcome.Load(), 0.0
	if last.ok {
		ok = 1
	}
	gauge(programsInfo, 1, p.digest())
	gauge(programsOK, ok)
	gauge(programsLastOK, float64(last.lastOK.UnixMilli())/1e3)
}
