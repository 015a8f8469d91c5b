// Package local runs the whole picture on one machine: a PostgreSQL, the
// simulator of D1, and the service, for development, the demonstration and
// tests. Nothing of it is meant for production.
package local

import (
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"cardorder/internal/api"
	"cardorder/internal/app"
	"cardorder/internal/config"
	"cardorder/internal/d1sim"
	"cardorder/internal/pgrun"
	"cardorder/internal/store"
)

// IssuerID is the issuer of the local environment.
const IssuerID = "ISSUER0001"

// CarrierDelivered is the carriers' code of a delivered parcel in the local environment.
const CarrierDelivered = "DELIVERED"

// Config says how to run it.
type Config struct {
	// Dir keeps the data between starts; "" means a private folder that goes
	// away with the environment.
	Dir string
	// Listen is the address of the API; "" means a free port of loopback.
	Listen string
	// DatabaseURL is a database to use instead of starting a PostgreSQL.
	DatabaseURL string
	// Simulator is how the simulator behaves.
	Simulator d1sim.Settings
	// MutualTLS lets the simulator come with a client certificate, as D1 does; without
	// it, with a token alone.
	MutualTLS bool
	// Adjust may change the configuration before the service starts.
	Adjust func(*config.Config)
	// Log gets the service's log, SimulatorLog the simulator's; nil means none.
	Log, SimulatorLog *slog.Logger
}

// Environment is a running local environment.
type Environment struct {
	Keys         Keys
	Certificates Keys // with mutual TLS
	Service      *app.Service
	Simulator    *d1sim.Sim
	D1URL        string // root of the simulator's D1 side
	Management   *d1sim.Client
	Ready        Ready
	DataDir      string // of the PostgreSQL; "" when none was started

	cfg     Config
	service *config.Config
	stop    []func(context.Context) error // in reverse
}

// Ready describes a running environment to programs.
type Ready struct {
	APIURL           string          `json:"apiUrl"`
	IssuerID         string          `json:"issuerId"`
	Token            string          `json:"token"`
	NotificationsURL string          `json:"notificationsUrl"`
	D1URL            string          `json:"d1Url"`
	D1ManagementURL  string          `json:"d1ManagementUrl"`
	D1EncryptionKey  json.RawMessage `json:"d1EncryptionKey"`
	DatabaseURL      string          `json:"databaseUrl"`
	MetricsURL       string          `json:"metricsUrl"`
}

// Start starts everything and returns when all of it answers.
func Start(ctx context.Context, cfg Config) (_ *Environment, err error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.SimulatorLog == nil {
		cfg.SimulatorLog = slog.New(slog.DiscardHandler)
	}
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	e := &Environment{cfg: cfg}
	defer func() {
		if err != nil {
			_ = e.Stop(context.WithoutCancel(ctx))
		}
	}()
	dir := cfg.Dir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "cardorder-"); err != nil {
			return nil, fmt.Errorf("making a folder: %w", err)
		}
		e.atStop(func(context.Context) error { return os.RemoveAll(dir) })
	}
	// Open to others: as root the database runs as another user and has its folder
	// in here. What is secret is closed by itself.
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // see above
		return nil, fmt.Errorf("making the data folder: %w", err)
	}
	if e.Keys, err = MakeKeys(filepath.Join(dir, "keys")); err != nil {
		return nil, err
	}
	if cfg.MutualTLS {
		if err := e.makeCertificates(filepath.Join(dir, "certificates")); err != nil {
			return nil, err
		}
	}
	if e.Ready.DatabaseURL, err = e.startDatabase(ctx); err != nil {
		return nil, err
	}
	if err := store.Migrate(ctx, e.Ready.DatabaseURL); err != nil {
		return nil, err
	}
	if err := e.startSimulator(ctx); err != nil {
		return nil, err
	}
	if e.service, err = e.serviceConfig(); err != nil {
		return nil, err
	}
	if err := e.StartService(ctx); err != nil {
		return nil, err
	}
	e.atStop(e.StopService)
	return e, nil
}

func (e *Environment) atStop(f func(context.Context) error) { e.stop = append(e.stop, f) }

// Stop ends everything, the last started first. It drains the service for as
// long as ctx lasts.
func (e *Environment) Stop(ctx context.Context) error {
	var errs []error
	for len(e.stop) > 0 {
		last := len(e.stop) - 1
		errs = append(errs, e.stop[last](ctx))
		e.stop = e.stop[:last]
	}
	return errors.Join(errs...)
}

func (e *Environment) startDatabase(ctx context.Context) (string, error) {
	if e.cfg.DatabaseURL != "" {
		return e.cfg.DatabaseURL, nil
	}
	pg := pgrun.Config{Logger: e.cfg.Log}
	if e.cfg.Dir != "" {
		pg.Dir, pg.Fsync = filepath.Join(e.cfg.Dir, "postgres"), true
	}
	server, err := pgrun.Start(ctx, pg)
	if err != nil {
		return "", fmt.Errorf("starting a local PostgreSQL: %w", err)
	}
	e.atStop(func(context.Context) error { return server.Stop() })
	e.DataDir = server.Dir()
	return server.URL(""), nil
}

func (e *Environment) startSimulator(ctx context.Context) error {
	signing, err := e.signingKey()
	if err != nil {
		return err
	}
	encryption, err := e.Keys.simulatorKey()
	if err != nil {
		return err
	}
	towardsService, err := e.D1TLS()
	if err != nil {
		return err
	}
	e.Simulator, err = d1sim.New(d1sim.Config{
		Issuers: []d1sim.Issuer{{
			ID: IssuerID, SigningKeys: map[string]*ecdsa.PublicKey{signingKeyID: &signing.PublicKey},
		}},
		Settings: e.cfg.Simulator, EncryptionKey: encryption, Logger: e.cfg.SimulatorLog,
		TLS: towardsService,
	})
	if err != nil {
		return fmt.Errorf("making the simulator: %w", err)
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- e.Simulator.Run(run) }()
	e.atStop(func(context.Context) error {
		cancel()
		return <-ended
	})
	if e.D1URL, err = e.serve(ctx, e.Simulator.Handler()); err != nil {
		return err
	}
	management, err := e.serve(ctx, e.Simulator.ManagementHandler())
	if err != nil {
		return err
	}
	e.Management = d1sim.NewClient(management, nil)
	key, err := json.Marshal(e.Simulator.EncryptionKey())
	if err != nil {
		return fmt.Errorf("writing the simulator's public key: %w", err)
	}
	e.Ready.D1URL, e.Ready.D1ManagementURL, e.Ready.D1EncryptionKey = e.D1URL, management, key
	if err := os.WriteFile(e.Keys.Path(fileEncryptionKey), key, 0o600); err != nil {
		return fmt.Errorf("writing the simulator's public key: %w", err)
	}
	return nil
}

// serve serves h on a free port of loopback until Stop.
func (e *Environment) serve(ctx context.Context, h http.Handler) (url string, err error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("listening for the simulator: %w", err)
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = srv.Serve(l) // ends with Close
	}()
	e.atStop(func(context.Context) error {
		err := srv.Close()
		<-ended
		return err
	})
	return "http://" + l.Addr().String(), nil
}

const (
	signingKeyID      = "local-signing"
	d1ClientID        = "d1"
	fileEncryptionKey = "d1-encryption-key.json"
)

func (e *Environment) signingKey() (*ecdsa.PrivateKey, error) {
	text, err := e.Keys.Read(FileSigningKey)
	if err != nil {
		return nil, err
	}
	key, err := config.ParseSigningKey(text)
	if err != nil {
		return nil, fmt.Errorf("the signing key: %w", err)
	}
	return key, nil
}

// serviceConfig is the configuration that a bank would write, for this machine.
func (e *Environment) serviceConfig() (*config.Config, error) {
	values := make(map[string]config.Secret)
	for _, name := range []string{FileSealing, FileContentHash, FileNotificationKey, FileD1ClientSecret, FileToken, FileTokenHash, FileSigningKey} {
		value, err := e.Keys.Read(name)
		if err != nil {
			return nil, err
		}
		values[name] = config.NewSecret(value)
	}
	cfg := &config.Config{
		Environment:   "development",
		Database:      config.Database{URL: config.NewSecret(e.Ready.DatabaseURL)},
		API:           config.Listener{Listen: e.cfg.Listen},
		Notifications: config.Listener{Listen: "127.0.0.1:0"},
		Admin:         config.Listener{Listen: "127.0.0.1:0"},
		Log:           config.Log{Level: "info"},
		Keys: config.Keys{
			Sealing: values[FileSealing], ContentHash: values[FileContentHash],
			NotificationTokens: []config.TokenKey{{ID: "local", Secret: values[FileNotificationKey]}},
		},
		Clients: []config.Client{{
			Name: "local", TokenSHA256: values[FileTokenHash], Scopes: api.Scopes, Issuers: []string{IssuerID},
		}},
		Issuers: []config.Issuer{{
			ID: IssuerID, BINs: []string{"411111", "555555"}, SensitiveData: true,
			OnHoldStatuses:    []string{"CARD_PROD_ON_HOLD"}, // words of the simulator's visitors: D1 and the carriers have their own
			DeliveredStatuses: []string{CarrierDelivered}, ReturnedStatuses: []string{"RETURNED_TO_SENDER"},
			D1: config.D1{
				BaseURL: e.D1URL + "/banking/v1", TokenURL: e.D1URL + "/authz/v1/oauth2/token", PathStyle: "reference",
				SigningKey: values[FileSigningKey], SigningKeyID: signingKeyID,
				EncryptionKeys: []config.EncryptionKey{{File: e.Keys.Path(fileEncryptionKey)}},
			},
			Sending:       config.Sending{AfterUnknown: "resend"},
			Notifications: config.Notifications{ClientID: d1ClientID, ClientSecret: values[FileD1ClientSecret]},
		}},
	}
	e.wayIn(cfg)
	if e.cfg.Adjust != nil {
		e.cfg.Adjust(cfg)
	}
	cfg.SetDefaults()
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("the local configuration: %w", err)
	}
	e.Ready.IssuerID, e.Ready.Token = IssuerID, values[FileToken].Reveal()
	return cfg, nil
}

// ServiceConfig is the configuration of the service.
func (e *Environment) ServiceConfig() *config.Config { return e.service }

// StartService starts the service, again after StopService, and tells the
// simulator where to find it.
func (e *Environment) StartService(ctx context.Context) error {
	service, err := app.Start(ctx, e.service, e.cfg.Log)
	if err != nil {
		return err
	}
	e.Service = service
	e.Ready.APIURL = service.URL("api")
	e.Ready.NotificationsURL = service.URL("notifications")
	e.Ready.MetricsURL = service.URL("admin") + "/metrics"
	in := e.service.Issuers[0]
	return e.Simulator.SetNotificationTarget(IssuerID,
		e.Ready.NotificationsURL+"/notifications/d1/v2/issuers/"+IssuerID+"/cards",
		e.Ready.NotificationsURL+"/authz/d1/v1/oauth2/token",
		in.Notifications.ClientID, in.Notifications.ClientSecret.Reveal())
}

// StopService stops the service alone; twice does no harm.
func (e *Environment) StopService(ctx context.Context) error { return e.Service.Stop(ctx) }
