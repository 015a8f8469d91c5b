package d1sim

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// DefaultAudience is the audience of token assertions: the production host, on staging too.
const DefaultAudience = "https://api.d1.thalescloud.io"

// The path styles of D1's documentation.
const (
	PathReference = "reference" // /physicalCards/{cardId}/operations:production, as the API reference has it
	PathLowercase = "lowercase" // /physicalcards/{cardId}/operations/production, as a guide has it
)

// Config says whom the simulator serves.
type Config struct {
	// Issuers are the banks served. Required, at least one.
	Issuers []Issuer

	// Aggregators act for several issuers with one token. Default none.
	Aggregators []Aggregator

	// Settings are the settings at start and after a reset. The zero value is all defaults.
	Settings Settings

	// EncryptionKey decrypts encryptedData; P-256. Default: a new key.
	EncryptionKey *ecdsa.PrivateKey

	// EncryptionKeyID is the kid that encryptedData must name. Default "d1sim-encryption".
	EncryptionKeyID string

	// Audience is what `aud` of a token assertion must be when present. Default DefaultAudience.
	Audience string

	// TLS is the client's side of TLS towards the issuers' token and notification endpoints. Default: the system's
	// authorities, and no client certificate.
	TLS *tls.Config

	// HTTPClient calls these endpoints. Default: a client of its own that gives up after 10 s and follows no redirect;
	// TLS is not looked at with another one.
	HTTPClient *http.Client

	// Logger gets one line for each request and each notification call: ids, never content. Default none.
	Logger *slog.Logger
}

// Issuer is a bank that orders cards.
type Issuer struct {
	ID          string                      // exactly 10 of A-Za-z0-9_-
	SigningKeys map[string]*ecdsa.PublicKey // by kid: P-256 keys that sign token assertions
	PathStyle   string                      // PathReference (default) or PathLowercase

	// Where notifications go. They may be set later, by SetNotificationTarget: notifications are queued until then.
	NotificationsURL string // as it is POSTed to
	TokenURL         string // the issuer's token endpoint; empty: notifications carry no token
	ClientID         string // Basic credentials at TokenURL
	ClientSecret     string
}

// Aggregator acts for several issuers: iss and sub of its assertions are its own ID.
type Aggregator struct {
	ID          string
	SigningKeys map[string]*ecdsa.PublicKey // by kid: P-256 keys that sign token assertions
	IssuerIDs   []string                    // issuers of Config.Issuers that it acts for
}

// Sim is a simulated bureau. Its handlers answer at once; cards walk and notifications leave while Run runs.
type Sim struct {
	log       *slog.Logger
	http      *http.Client
	audience  string
	key       *ecdsa.PrivateKey
	keyID     string
	issuers   map[string]*issuer   // by ID
	tokenKeys map[string]principal // by iss
	initial   Settings

	mu       sync.Mutex
	changed  chan struct{} // closed, and replaced, whenever something below changes
	running  bool
	settings Settings
	book     *book
	tokens   map[string]accessToken // by their text
	usedJTIs map[usedJTI]time.Time  // until when each must be remembered
}

// issuer is an issuer at work; target and token are guarded by Sim.mu.
type issuer struct {
	id        string
	pathStyle string
	target    target
	token     bearer
}

// New checks the configuration, telling all that is wrong with it at once.
func New(cfg Config) (*Sim, error) {
	s := &Sim{
		log:       cfg.Logger,
		http:      cfg.HTTPClient,
		audience:  cfg.Audience,
		key:       cfg.EncryptionKey,
		keyID:     cfg.EncryptionKeyID,
		issuers:   make(map[string]*issuer),
		tokenKeys: make(map[string]principal),
		changed:   make(chan struct{}),
		book:      newBook(),
		tokens:    make(map[string]accessToken),
		usedJTIs:  make(map[usedJTI]time.Time),
	}
	defaultTo(&s.log, slog.New(slog.DiscardHandler))
	defaultTo(&s.http, notificationClient(cfg.TLS))
	defaultTo(&s.audience, DefaultAudience)
	defaultTo(&s.keyID, "d1sim-encryption")
	if s.key == nil {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("encryption key: %w", err)
		}
		s.key = key
	}

	var faults []error
	if s.key.Curve != elliptic.P256() {
		faults = append(faults, errors.New("encryption key: must be on P-256"))
	}
	if len(cfg.Issuers) == 0 {
		faults = append(faults, errors.New("issuers: at least one is required"))
	}
	for _, i := range cfg.Issuers {
		faults = append(faults, s.addIssuer(i))
	}
	for _, a := range cfg.Aggregators {
		faults = append(faults, s.addAggregator(a))
	}
	settings, err := cfg.Settings.checked()
	if err != nil {
		faults = append(faults, fmt.Errorf("settings: %w", err))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	s.initial, s.settings = settings, settings
	return s, nil
}

func (s *Sim) addIssuer(i Issuer) error {
	defaultTo(&i.PathStyle, PathReference)
	if !issuerIDPattern.MatchString(i.ID) {
		return fmt.Errorf("issuer %q: the id must be exactly 10 of A-Za-z0-9_-", i.ID)
	}
	if i.PathStyle != PathReference && i.PathStyle != PathLowercase {
		return fmt.Errorf("issuer %s: path style %q is none of %q, %q", i.ID, i.PathStyle, PathReference, PathLowercase)
	}
	s.issuers[i.ID] = &issuer{
		id:        i.ID,
		pathStyle: i.PathStyle,
		target:    target{i.NotificationsURL, i.TokenURL, i.ClientID, i.ClientSecret},
	}
	return s.addPrincipal(i.ID, i.SigningKeys, []string{i.ID})
}

func (s *Sim) addAggregator(a Aggregator) error {
	for _, id := range a.IssuerIDs {
		if s.issuers[id] == nil {
			return fmt.Errorf("aggregator %q: issuer %q is not configured", a.ID, id)
		}
	}
	return s.addPrincipal(a.ID, a.SigningKeys, a.IssuerIDs)
}

func (s *Sim) addPrincipal(id string, keys map[string]*ecdsa.PublicKey, issuerIDs []string) error {
	if _, taken := s.tokenKeys[id]; taken || id == "" {
		return fmt.Errorf("id %q: empty or configured twice", id)
	}
	for kid, key := range keys {
		if key == nil || key.Curve != elliptic.P256() {
			return fmt.Errorf("%s: signing key %q must be on P-256", id, kid)
		}
	}
	s.tokenKeys[id] = principal{keys: keys, issuerIDs: slices.Clone(issuerIDs)}
	return nil
}

// EncryptionKey is the public key that encryptedData is encrypted for.
func (s *Sim) EncryptionKey() jose.JSONWebKey {
	return jose.JSONWebKey{
		Key:       &s.key.PublicKey,
		KeyID:     s.keyID,
		Algorithm: string(jose.ECDH_ES),
		Use:       "enc",
	}
}

// Settings returns the settings in force.
func (s *Sim) Settings() Settings {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.settings.clone()
}

// UpdateSettings changes the settings in one step; faulty ones are refused and change nothing.
func (s *Sim) UpdateSettings(change func(*Settings)) error {
	_, err := s.changeSettings(func(set Settings) (Settings, error) {
		change(&set)
		return set, nil
	})
	return err
}

func (s *Sim) changeSettings(change func(Settings) (Settings, error)) (Settings, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next, err := change(s.settings.clone())
	if err != nil {
		return Settings{}, err
	}
	if next, err = next.checked(); err != nil {
		return Settings{}, err
	}
	s.settings = next
	s.book.lineUpAgain(next)
	s.announce()
	return next.clone(), nil
}

// Reset forgets cards, requests, notifications and scripts, and goes back to the settings of the start. Access tokens
// stay valid: a client that keeps its token must not notice.
func (s *Sim) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.book = newBook()
	s.settings = s.initial
	s.announce()
}

// announce wakes everything that waits for a change. Call it with mu held.
func (s *Sim) announce() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Run lets cards walk and notifications leave until ctx ends, then returns nil once every goroutine of its own has
// ended. What is queued stays queued: Run may be called again after it returned.
func (s *Sim) Run(ctx context.Context) error {
	s.mu.Lock()
	alreadyRunning := s.running
	s.running = true
	s.mu.Unlock()
	if alreadyRunning {
		return errors.New("d1sim: already running")
	}
	defer func() {
		s.mu.Lock()
		s.running = false
		s.mu.Unlock()
	}()

	s.log.WarnContext(ctx, "******************** D1 SIMULATOR: this is not Thales D1, NO CARD IS EVER MADE ********************")
	var background sync.WaitGroup
	background.Go(func() { s.walk(ctx) })
	for _, iss := range s.issuers {
		background.Go(func() { s.notify(ctx, iss) })
	}
	background.Wait()
	s.http.CloseIdleConnections()
	return nil
}

// walk takes the cards through production: one goroutine for all of them.
func (s *Sim) walk(ctx context.Context) {
	for {
		s.mu.Lock()
		now := time.Now()
		decided, undecided := s.book.decideDue(now, s.settings)
		moved, next := s.book.walkDue(now, s.settings)
		queued, late := s.book.queueLate(now)
		if decided+moved+queued > 0 {
			s.announce()
		}
		next = earlier(earlier(next, late), undecided)
		changed := s.changed
		s.mu.Unlock()

		var due <-chan time.Time // nil, never ready, while no card is walking and no notification late
		if !next.IsZero() {
			due = time.After(time.Until(next))
		}
		select {
		case <-ctx.Done():
			return
		case <-due:
		case <-changed:
		}
	}
}
