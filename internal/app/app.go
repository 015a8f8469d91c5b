// Package app is the service's wiring and life cycle: what `server serve` runs
// and what tests start in-process.
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"cardorder/internal/api"
	"cardorder/internal/config"
	"cardorder/internal/d1client"
	"cardorder/internal/order"
	"cardorder/internal/outbox"
	"cardorder/internal/store"
)

var errSchema = errors.New("the database's schema is not current: run `server migrate up` first, or start with --migrate")

// Service is a running service.
type Service struct {
	log          *slog.Logger
	store        *store.Store
	programs     *programs
	certificates *certificates
	servers      []*server
	fleet        *outbox.Fleet
	clients      []*d1client.Client
	failed       chan error

	stopSending context.CancelFunc
	background  sync.WaitGroup
	stopOnce    sync.Once
	started     chan struct{}
	stopping    chan struct{}
}

// Start starts everything and returns once all listeners answer. Stop ends it.
func Start(ctx context.Context, cfg *config.Config, log *slog.Logger) (_ *Service, err error) {
	s := &Service{
		log: log, failed: make(chan error, 3), started: make(chan struct{}), stopping: make(chan struct{}),
	}
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.stopSending = cancel
	defer func() {
		if err != nil {
			s.close()
		}
	}()

	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	issuers := issuerIDs(cfg)
	if s.programs, err = newPrograms(cfg, log); err != nil {
		return nil, fmt.Errorf("programsFile: %w", err)
	}
	if s.certificates, err = newCertificates(cfg, log); err != nil {
		return nil, err
	}
	registry.MustRegister(s.programs, s.certificates)
	var notifications *api.Notifications
	sending := outbox.NewMetrics(registry, issuers)
	if s.store, err = openStore(ctx, cfg, log, store.Config{
		DuplicateWindow: s.programs.duplicateWindow, Limits: s.programs.limits, ConsumerLimits: s.programs.consumerLimits,
		ChangeTimeout: changeTimeout(cfg), OnReady: s.wakeLane, OnParked: func(ids []int64) { notifications.Wake(ids) },
		OnAttention: sending.Attention, OnLate: sending.Late, OnClaimLost: sending.ClaimLost, OnDrift: sending.Drift,
		ForeignAfter: foreignAfter(cfg),
	}); err != nil {
		return nil, err
	}
	// First, so that it can be asked why the rest takes so long.
	if err := s.listen(ctx, listenerAdmin, cfg.Admin, adminHandler(registry, s.ready, s.programs.digest)); err != nil {
		return nil, err
	}
	if err := UntilDatabase(ctx, log, s.checkDatabase(cfg.Environment)); err != nil {
		return nil, err
	}
	warnAboutBINs(cfg, log)
	warnAboutWayIn(cfg, log)
	registry.MustRegister(newStatsCollector(s.store, issuers, log))

	apiConfig, err := s.apiConfig(cfg, api.NewMetrics(registry, issuers))
	if err != nil {
		return nil, err
	}
	notifications = api.NewNotifications(apiConfig)
	if err := s.addLanes(cfg, sending); err != nil {
		return nil, err
	}
	for _, l := range []struct {
		name    string
		listen  config.Listener
		handler http.Handler
	}{
		{listenerNotifications, cfg.Notifications, notifications.Handler()},
		{listenerAPI, cfg.API, api.NewHandler(apiConfig)},
	} {
		if err := s.listen(ctx, l.name, l.listen, l.handler); err != nil {
			return nil, err
		}
	}
	s.background.Go(func() { notifications.Run(work) })
	s.background.Go(func() { s.programs.watch(work) })
	s.background.Go(func() { s.certificates.watch(work) })
	s.background.Go(func() { s.fleet.Run(work) })
	s.background.Go(func() { s.watchCardData(work, apiConfig.Issuers) })
	direct := cfg.Database.DirectURL
	if !direct.IsSet() {
		direct = cfg.Database.URL
	}
	s.background.Go(func() { s.store.Listen(work, direct.Reveal(), s.fleet.Wake, s.fleet.Look) })
	close(s.started)
	return s, nil
}

// databaseRetry is how often a database that is away is looked for at the start, and
// databaseReport how often the log tells.
const (
	databaseRetry  = time.Second
	databaseReport = 30 * time.Second
)

// UntilDatabase repeats f until it does not fail for want of a database, or ctx ends.
// To exit instead would leave the waiting to a supervisor, whose pauses grow to
// minutes and go on when the database is back. One that turns us away (wrong password,
// no such database) is no reason to wait.
func UntilDatabase(ctx context.Context, log *slog.Logger, f func(context.Context) error) error {
	var told time.Time
	for {
		err := f(ctx)
		if err == nil || !store.Away(err) || store.Denied(err) || ctx.Err() != nil {
			return err
		}
		if time.Since(told) >= databaseReport {
			log.Warn("the database is away: waiting for it", "error", err)
			told = time.Now()
		}
		select {
		case <-time.After(databaseRetry):
		case <-ctx.Done():
			return err
		}
	}
}

// checkSchema returns an error when the database lacks migrations of this binary.
func checkSchema(ctx context.Context, st *store.Store) error {
	current, err := st.SchemaCurrent(ctx)
	if err == nil && !current {
		err = errSchema
	}
	return err
}

// checkDatabase tells whether the service can start on its database.
func (s *Service) checkDatabase(environment string) func(context.Context) error {
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		if err := checkSchema(ctx, s.store); err != nil {
			return err
		}
		if err := s.checkDurability(ctx, environment); err != nil {
			return err
		}
		unsafe, err := s.store.UnsafeFailover(ctx)
		if err != nil {
			return err
		}
		if unsafe {
			s.log.Warn("the database URL names several hosts, but commits wait for no standby: an order that was answered 201 can be lost in a failover; set synchronous_standby_names")
		}
		unbounded, err := s.store.Unbounded(ctx)
		if unbounded {
			s.log.Warn("statement_timeout, lock_timeout or idle_in_transaction_session_timeout is 0, as behind a PgBouncer that ignores them: set them on the database role")
		}
		return err
	}
}

// checkDurability refuses a database that forgets commits when it crashes: a
// 201 would promise what it cannot keep. Development may.
func (s *Service) checkDurability(ctx context.Context, environment string) error {
	durable, err := s.store.Durable(ctx)
	if err == nil && !durable && environment != "development" {
		err = errors.New("the database has synchronous_commit = off: an order that was answered 201 could be lost in a crash")
	}
	return err
}

func warnAboutBINs(cfg *config.Config, log *slog.Logger) {
	for _, in := range cfg.Issuers {
		if len(in.BINs) == 0 {
			log.Warn("the issuer has no BINs: its card numbers are not recognised in ids", "issuerId", in.ID)
		}
	}
}

func issuerIDs(cfg *config.Config) []string {
	ids := make([]string, len(cfg.Issuers))
	for i := range cfg.Issuers {
		ids[i] = cfg.Issuers[i].ID
	}
	return ids
}

// foreignAfter says how long the notifications of an issuer wait for their orders.
func foreignAfter(cfg *config.Config) func(issuerID string) time.Duration {
	after := make(map[string]time.Duration, len(cfg.Issuers))
	for i := range cfg.Issuers {
		after[cfg.Issuers[i].ID] = cfg.Issuers[i].Notifications.ForeignAfter
	}
	return func(issuerID string) time.Duration { return after[issuerID] }
}

// openStore opens the database with what the configuration says, beside what is given.
func openStore(ctx context.Context, cfg *config.Config, log *slog.Logger, given store.Config) (*store.Store, error) {
	sealer, err := store.NewSealer([]byte(cfg.Keys.Sealing.Reveal()))
	if err != nil {
		return nil, fmt.Errorf("keys.sealing: %w", err)
	}
	hashKey, err := cfg.Keys.ContentHash.Bytes32()
	if err != nil {
		return nil, fmt.Errorf("keys.contentHash: %w", err)
	}
	given.URL, given.MaxConns, given.Log = cfg.Database.URL.Reveal(), cfg.Database.MaxConns, log
	given.Seal, given.HashKeys = sealer, store.HashKeys{Current: hashKey}
	return store.Open(ctx, given)
}

func (s *Service) apiConfig(cfg *config.Config, metrics *api.Metrics) (api.Config, error) {
	a := api.Config{
		Store: s.store, Metrics: metrics, Log: s.log, Ready: s.ready, Stopping: s.stopping,
		Rules: s.programs.rules, ProgramsDigest: s.programs.digest, ClientAuthorities: s.certificates.authorities,
	}
	for _, k := range cfg.Keys.NotificationTokens {
		secret, err := k.Secret.Bytes32()
		if err != nil {
			return a, fmt.Errorf("keys.notificationTokens: %w", err)
		}
		a.TokenKeys = append(a.TokenKeys, api.TokenKey{ID: k.ID, Secret: secret})
	}
	for _, c := range cfg.Clients {
		hash, err := c.TokenHash()
		if err != nil {
			return a, fmt.Errorf("clients: %w", err)
		}
		a.Clients = append(a.Clients, api.Client{Name: c.Name, TokenHash: hash, Scopes: c.Scopes, Issuers: c.Issuers})
	}
	for i := range cfg.Issuers {
		in := &cfg.Issuers[i]
		encrypter, err := in.Encrypter()
		if err != nil {
			return a, fmt.Errorf("issuer %s: d1.encryptionKeys: %w", in.ID, err)
		}
		a.Issuers = append(a.Issuers, api.Issuer{
			ID: in.ID, Encrypter: encrypter, SensitiveData: in.SensitiveData, Vocabulary: vocabulary(in),
			Concurrency: in.Sending.Concurrency, RatePerSecond: in.Sending.RatePerSecond,
			WithoutToken: !in.Notifications.WantsToken(), WithoutCertificate: !in.Notifications.WantsCertificate(),
			ClientNames: in.Notifications.ClientNames,
			ClientID:    in.Notifications.ClientID, ClientSecret: in.Notifications.ClientSecret.Reveal(),
		})
	}
	return a, nil
}

// vocabulary is what the configuration says of D1's words.
func vocabulary(in *config.Issuer) order.Vocabulary {
	return order.Vocabulary{OnHold: in.OnHoldStatuses, Delivered: in.DeliveredStatuses, Returned: in.ReturnedStatuses}
}

func (s *Service) addLanes(cfg *config.Config, metrics *outbox.Metrics) (err error) {
	if s.fleet, err = outbox.NewFleet(outbox.FleetConfig{Log: s.log}, s.store, metrics); err != nil {
		return err
	}
	for i := range cfg.Issuers {
		in := &cfg.Issuers[i]
		clientConfig, err := in.ClientConfig(cfg.Environment)
		if err != nil {
			return fmt.Errorf("issuer %s: d1: %w", in.ID, err)
		}
		client, err := d1client.New(clientConfig)
		if err != nil {
			return fmt.Errorf("issuer %s: d1: %w", in.ID, err)
		}
		s.clients = append(s.clients, client)
		sending := in.Sending
		s.fleet.Add(outbox.Config{
			IssuerID: in.ID, Concurrency: sending.Concurrency, RatePerSecond: sending.RatePerSecond,
			CallTimeout: sending.CallTimeout, Poll: sending.Poll, BreakerThreshold: sending.BreakerThreshold,
			Policy: outbox.Policy{
				ResendAfter: sending.ResendAfter, NeverResend: sending.AfterUnknown == "wait",
				Retry404For: sending.Retry404For, StopAfterRefusals: sending.StopAfterRefusals,
				GiveUpAfter: sending.GiveUpAfter, Vocabulary: vocabulary(in), Guard: order.PANGuard{BINs: in.BINs},
			},
			Log: s.log,
		}, client)
	}
	return nil
}

// wakeLane is told after each commit that left something to send.
func (s *Service) wakeLane(name string) {
	s.fleet.Wake(name)
	if !s.fleet.Alone() {
		s.store.Announce(name)
	}
}

// ready tells why this replica cannot work, or nil.
func (s *Service) ready(ctx context.Context) error {
	select {
	case <-s.stopping:
		return errors.New("stopping")
	default:
	}
	if err := s.store.Ping(ctx); err != nil {
		return err
	}
	if err := checkSchema(ctx, s.store); err != nil {
		return err
	}
	select {
	case <-s.started:
		return nil
	default:
		return errors.New("starting")
	}
}

// The listeners.
const (
	listenerAPI           = "api"
	listenerNotifications = "notifications"
	listenerAdmin         = "admin"
)

// server is one listener and what serves it.
type server struct {
	name     string
	listener net.Listener
	http     *http.Server
	tls      bool
}

func (s *Service) listen(ctx context.Context, name string, cfg config.Listener, h http.Handler) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.Listen)
	if err != nil {
		return fmt.Errorf("listening for %s: %w", name, err)
	}
	srv := &server{name: name, listener: l, tls: cfg.TLS != nil, http: &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       time.Minute,
		WriteTimeout:      time.Minute,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.With("listener", name).Handler(), slog.LevelWarn),
	}}
	if t := s.certificates.of(name); t != nil {
		srv.listener = t.wrap(l)
		srv.http.ConnContext = t.accepted
		srv.http.ErrorLog = slog.NewLogLogger(handshakes{s.log.With("listener", name).Handler(), t}, slog.LevelWarn)
	}
	s.servers = append(s.servers, srv)
	s.background.Go(func() {
		if err := srv.http.Serve(srv.listener); !errors.Is(err, http.ErrServerClosed) {
			s.failed <- fmt.Errorf("serving %s: %w", name, err)
		}
	})
	s.log.Info("listening", "listener", name, "address", l.Addr().String())
	return nil
}

// URL returns the base URL of a listener: api, notifications or admin.
func (s *Service) URL(name string) string {
	for _, srv := range s.servers {
		if srv.name != name {
			continue
		}
		scheme := "http://"
		if srv.tls {
			scheme = "https://"
		}
		return scheme + srv.listener.Addr().String()
	}
	return ""
}

// ReloadPrograms reads the programs file again, whether it changed or not. One
// that is not right changes nothing; the log and the metrics tell.
func (s *Service) ReloadPrograms() { s.programs.reload() }

// ReloadCertificates does the same for the listeners' certificates and authorities.
func (s *Service) ReloadCertificates() { s.certificates.reload() }

// Failed tells of a listener that broke; the service is then to be stopped.
func (s *Service) Failed() <-chan error { return s.failed }

// Stop drains the service: it takes no new requests and no new messages, lets
// those under way finish until ctx ends, and then closes everything. Twice does
// no harm.
func (s *Service) Stop(ctx context.Context) error {
	var err error
	s.stopOnce.Do(func() {
		close(s.stopping)
		s.stopSending()
		var wg sync.WaitGroup
		errs := make([]error, len(s.servers))
		for i, srv := range s.servers {
			wg.Go(func() {
				if errs[i] = srv.http.Shutdown(ctx); errs[i] != nil {
					_ = srv.http.Close()
				}
			})
		}
		wg.Wait()
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.background.Wait()
		}()
		select {
		case <-done:
			s.close()
		case <-ctx.Done():
			// What is still under way is in the database as claimed, and the next
			// start asks D1 about it.
			errs = append(errs, fmt.Errorf("draining: %w", ctx.Err()))
		}
		err = errors.Join(errs...)
	})
	return err
}

// close releases what Start took.
func (s *Service) close() {
	s.stopSending()
	for _, srv := range s.servers {
		_ = srv.http.Close()
	}
	s.background.Wait()
	for _, c := range s.clients {
		c.Close()
	}
	if s.store != nil {
		s.store.Close()
	}
}
