// Package api is HTTP: orders for core banking, and notifications and their
// tokens for D1, each on a listener of its own.
package api

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"

	"cardorder/internal/d1client"
	"cardorder/internal/order"
	"cardorder/internal/store"
)

// Config is what both sides of the API need.
type Config struct {
	Store   *store.Store
	Clients []Client
	Issuers []Issuer
	Metrics *Metrics
	Log     *slog.Logger
	// Rules returns what the orders of an issuer have to meet now; never nil.
	Rules func(issuerID string) *order.Rules
	// ProgramsDigest names the programs file in effect, "" without one.
	ProgramsDigest func() string
	// TokenKeys sign (the first) and verify (all) the tokens that D1 gets from us.
	TokenKeys []TokenKey
	// ClientAuthorities returns those of D1's client certificate that are trusted now.
	ClientAuthorities func() *x509.CertPool
	// Stopping is closed when the service takes no more work: uploads end then, to go
	// on elsewhere.
	Stopping <-chan struct{}
	// Ready tells why the service cannot work, or nil.
	Ready func(context.Context) error
}

// Issuer is what the API knows of an issuer.
type Issuer struct {
	ID            string
	Encrypter     *d1client.Encrypter
	SensitiveData bool // orders may carry card data in clear
	Vocabulary    order.Vocabulary
	// Concurrency and RatePerSecond (0: none) are the limits of its lane, of all
	// replicas together.
	Concurrency, RatePerSecond int
	// WithoutToken and WithoutCertificate are what D1 need not bring to be let in.
	WithoutToken, WithoutCertificate bool
	// ClientNames are the names of D1's certificate; none: any that is trusted.
	ClientNames []string
	// ClientID and ClientSecret are D1's credentials for a token from us.
	ClientID, ClientSecret string
}

type server struct {
	Config
	issuers map[string]*Issuer
}

func newServer(cfg Config) *server {
	s := &server{Config: cfg, issuers: make(map[string]*Issuer, len(cfg.Issuers))}
	for i := range cfg.Issuers {
		s.issuers[cfg.Issuers[i].ID] = &cfg.Issuers[i]
	}
	return s
}

// NewHandler serves core banking.
func NewHandler(cfg Config) http.Handler {
	s := newServer(cfg)
	r := newRouter("api", cfg)
	r.Get("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	r.Get("/readyz", s.ready)
	r.Head("/healthz", func(http.ResponseWriter, *http.Request) {}) // some load balancers ask so
	r.Head("/readyz", s.ready)
	document, page := serveOpenAPI(), serveDocs()
	r.Get("/openapi.yaml", document)
	r.Head("/openapi.yaml", document)
	r.Get("/docs", page)
	r.Head("/docs", page)
	r.Route("/v1/issuers/{issuerId}", func(r chi.Router) {
		r.Use(authenticate(cfg.Clients))
		read, write, operate := s.authorize(ScopeRead), s.authorize(ScopeWrite), s.authorize(ScopeOperate)
		r.Group(func(r chi.Router) {
			r.Use(deadline)
			r.With(write).Post("/orders", s.handle(s.placeOrder))
			r.With(read).Get("/orders", s.handle(s.listOrders))
			r.With(read).Get("/orders/{orderId}", s.handle(plain(s.getOrder)))
			r.With(read).Get("/orders/{orderId}/timeline", s.handle(plain(s.getTimeline)))
			r.With(operate).Post("/orders/{orderId}/refresh", s.handle(plain(s.refreshOrder)))
			r.With(operate).Post("/orders/{orderId}/retry", s.handle(plain(s.retryOrder)))
			r.With(operate).Post("/orders/{orderId}/hold", s.handle(plain(s.holdOrder)))
			r.With(operate).Post("/orders/{orderId}/release", s.handle(plain(s.releaseOrder)))
			r.With(operate).Post("/orders/{orderId}/notes", s.handle(plain(s.addNote)))
			r.With(operate).Post("/orders/{orderId}/attention/{code}/clear", s.handle(plain(s.clearAttention)))
			r.With(operate).Post("/orders/{orderId}/reorder", s.handle(plain(s.reorderOrder)))
			r.With(write).Post("/orders/{orderId}/changes", s.handle(plain(s.placeChange)))
			r.With(read).Get("/orders/{orderId}/changes", s.handle(s.listChanges))
			r.With(read).Get("/orders/{orderId}/changes/{changeId}", s.handle(plain(s.getChange)))
			r.With(read).Get("/lanes", s.handle(plain(s.listLanes)))
			r.With(operate).Post("/lanes/{lane}/pause", s.handle(plain(s.pauseLane)))
			r.With(operate).Post("/lanes/{lane}/resume", s.handle(plain(s.resumeLane)))
			r.With(read).Get("/drift", s.handle(s.listDrift))
			r.With(operate).Post("/notifications/{notificationId}/replay", s.handle(plain(s.replayNotification)))
			r.With(operate).Post("/notifications/replay", s.handle(plain(s.replayNotifications)))
			r.With(read).Get("/programs", s.handle(plain(s.listPrograms)))
			r.With(read).Get("/order-batches", s.handle(s.listBatches))
			r.With(read).Get("/order-batches/{batchId}", s.handle(plain(s.getBatch)))
		})
		// These take as long as there are orders; each has its own bounds.
		r.With(read).Get("/reports/daily", s.handle(s.dailyReport))
		r.With(write).Post("/order-batches", s.handle(s.placeBatch))
		r.With(read).Get("/order-batches/{batchId}/results", s.handle(s.getResults))
		for _, action := range []store.BatchAction{store.BatchHold, store.BatchRelease, store.BatchCancel} {
			r.With(operate).Post("/order-batches/{batchId}/"+string(action), s.handle(plain(s.act(action))))
		}
	})
	return r
}

// requestTimeout bounds what one request may take, waiting for the database
// included: 503 then, and the caller sends it again.
const requestTimeout = 15 * time.Second

func deadline(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
		defer cancel()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

func newRouter(listener string, cfg Config) chi.Router {
	r := chi.NewRouter()
	r.Use(observe(listener, cfg))
	r.NotFound(func(w http.ResponseWriter, r *http.Request) { writeProblem(w, r, errNoSuchPath) })
	r.MethodNotAllowed(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Allow", allowed(r))
		writeProblem(w, r, errMethod)
	})
	return r
}

// allowed lists the methods that exist where r was sent to.
func allowed(r *http.Request) string {
	var list []string
	for _, m := range []string{http.MethodGet, http.MethodHead, http.MethodPost} {
		if chi.RouteContext(r.Context()).Routes.Match(chi.NewRouteContext(), m, r.URL.Path) {
			list = append(list, m)
		}
	}
	return strings.Join(list, ", ")
}

// plain is for what takes no query: ignoring one would answer another question.
func plain(h func(http.ResponseWriter, *http.Request) error) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		if r.URL.RawQuery != "" {
			return invalid(fault{Code: order.CodeUnknownMember, Detail: "there are no query parameters here"})
		}
		return h(w, r)
	}
}

// statusCallerGone is what logs and metrics tell of a caller that hung up, as nginx has
// it: nothing was wrong here, and nobody gets an answer.
const statusCallerGone = 499

// hungUp tells that the caller waits for no answer any more.
func hungUp(r *http.Request) bool { return errors.Is(r.Context().Err(), context.Canceled) }

// handle runs a handler and answers with the problem that it returns.
func (s *server) handle(h func(http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		err := h(w, r)
		if err == nil {
			return
		}
		p := asProblem(err)
		if errors.Is(err, context.Canceled) && hungUp(r) {
			w.WriteHeader(statusCallerGone)
			return
		}
		if p.Status >= 500 {
			s.Log.Error("a request failed", "correlationId", correlationID(r.Context()), "error", err)
		}
		annotate(r.Context(), slog.String("problem", p.Type))
		writeProblem(w, r, p)
	}
}

// readiness tells with which programs a replica works, too: during a roll-out
// they differ.
type readiness struct {
	Status         string `json:"status"`
	ProgramsDigest string `json:"programsDigest,omitempty"`
}

// ready tells load balancers whether this replica can take requests.
func (s *server) ready(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	defer cancel()
	if err := s.Ready(ctx); err != nil {
		s.Log.Warn("not ready", "error", err)
		writeJSON(w, http.StatusServiceUnavailable, readiness{Status: "unavailable"})
		return
	}
	writeJSON(w, http.StatusOK, readiness{"ok", s.ProgramsDigest()})
}
