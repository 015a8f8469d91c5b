package d1sim

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5"
)

const (
	defaultWait = 10 * time.Second // GET /wait without a timeout
	maxWait     = 5 * time.Minute
)

// ManagementHandler is the management port: whoever reaches it may do anything, so keep it off the D1 side's listener.
func (s *Sim) ManagementHandler() http.Handler {
	r := chi.NewRouter()
	r.Use(markSimulator)
	r.Get("/settings", func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, s.Settings()) })
	r.Patch("/settings", s.servePatchSettings)
	r.Get("/encryption-key", func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, s.EncryptionKey()) })
	r.Get("/history", s.serveHistory)
	r.Get("/cards", s.serveCards)
	r.Post("/cards/move", s.serveMove)
	r.Get("/cards/counts", func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, s.CardCounts()) })
	r.Get("/changes", func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, s.Changes()) })
	r.Get("/script", func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, s.Scripts()) })
	r.Post("/script", s.serveScript)
	r.Delete("/script", func(w http.ResponseWriter, _ *http.Request) { s.ClearScripts(); w.WriteHeader(http.StatusNoContent) })
	r.Get("/notifications", func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, s.Notifications()) })
	r.Post("/notifications", s.serveSendNotification)
	r.Post("/operations", s.serveTell)
	r.Get("/faults", func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, s.FaultCounts()) })
	r.Delete("/tokens", func(w http.ResponseWriter, _ *http.Request) { s.RevokeTokens(); w.WriteHeader(http.StatusNoContent) })
	r.Post("/reset", func(w http.ResponseWriter, _ *http.Request) { s.Reset(); w.WriteHeader(http.StatusNoContent) })
	r.Get("/wait", s.serveWait)
	return r
}

// servePatchSettings changes the members that are in the body and answers with the settings in force after it.
func (s *Sim) servePatchSettings(w http.ResponseWriter, r *http.Request) {
	patch, ok := readBody(w, r)
	if !ok {
		return
	}
	next, err := s.changeSettings(func(set Settings) (Settings, error) { return set.patched(patch) })
	if err != nil {
		replyError(w, http.StatusBadRequest, err)
		return
	}
	reply(w, http.StatusOK, next)
}

func (s *Sim) serveHistory(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	if err := onlyKnown(query, "kind", "issuerRequestId", "cardId"); err != nil {
		replyError(w, http.StatusBadRequest, err)
		return
	}
	reply(w, http.StatusOK, s.History(Filter{
		Kind:            Kind(query.Get("kind")),
		IssuerRequestID: query.Get("issuerRequestId"),
		CardID:          query.Get("cardId"),
	}))
}

// serveCards lists all cards, or those of the issuer that the query names.
func (s *Sim) serveCards(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	if err := onlyKnown(query, "issuerId"); err != nil {
		replyError(w, http.StatusBadRequest, err)
		return
	}
	if query.Has("issuerId") {
		reply(w, http.StatusOK, s.CardsOf(query.Get("issuerId")))
		return
	}
	reply(w, http.StatusOK, s.Cards())
}

func (s *Sim) serveScript(w http.ResponseWriter, r *http.Request) { serveCommand(w, r, s.Script) }

func (s *Sim) serveMove(w http.ResponseWriter, r *http.Request) { serveCommand(w, r, s.Move) }

// serveCommand does what the body says.
func serveCommand[T any](w http.ResponseWriter, r *http.Request, do func(T) error) {
	body, ok := readBody(w, r)
	if !ok {
		return
	}
	var command T
	err := decodeStrict(body, &command)
	if err == nil {
		err = do(command)
	}
	if err != nil {
		replyError(w, http.StatusBadRequest, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// serveTell tells the operation in the body, of the issuer named by issuerId.
func (s *Sim) serveTell(w http.ResponseWriter, r *http.Request) {
	body, ok := readBody(w, r)
	if !ok {
		return
	}
	var op Operation
	id, err := "", decodeStrict(body, &op)
	if err == nil {
		id, err = s.Tell(r.URL.Query().Get("issuerId"), op)
	}
	if err != nil {
		replyError(w, http.StatusBadRequest, err)
		return
	}
	reply(w, http.StatusCreated, map[string]string{"operationId": id})
}

// serveSendNotification sends the request's body, whatever it is, to the issuer named by issuerId.
func (s *Sim) serveSendNotification(w http.ResponseWriter, r *http.Request) {
	body, ok := readBody(w, r)
	if !ok {
		return
	}
	status, err := s.SendNotification(r.Context(), r.URL.Query().Get("issuerId"), body)
	if err != nil {
		replyError(w, http.StatusBadGateway, err)
		return
	}
	reply(w, http.StatusOK, map[string]int{"status": status})
}

// serveWait answers 204 once the condition holds, 408 when the time is up.
func (s *Sim) serveWait(w http.ResponseWriter, r *http.Request) {
	condition, timeout, err := parseCondition(r.URL.Query())
	if err != nil {
		replyError(w, http.StatusBadRequest, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	if err := s.Wait(ctx, condition); err != nil {
		replyError(w, http.StatusRequestTimeout, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// query is the condition as GET /wait takes it.
func (c Condition) query() url.Values {
	query := url.Values{}
	number := func(name string, value int) {
		if value != 0 {
			query.Set(name, strconv.Itoa(value))
		}
	}
	flag := func(name string, value bool) {
		if value {
			query.Set(name, "true")
		}
	}
	text := func(name, value string) {
		if value != "" {
			query.Set(name, value)
		}
	}
	number("cards", c.Cards)
	number("requests", c.Requests)
	number("deliveries", c.Deliveries)
	flag("delivered", c.Delivered)
	flag("idle", c.Idle)
	text("status", c.Status)
	text("kind", string(c.Kind))
	text("issuerRequestId", c.IssuerRequestID)
	text("cardId", c.CardID)
	return query
}

func parseCondition(query url.Values) (Condition, time.Duration, error) {
	faults := []error{onlyKnown(query, "cards", "requests", "deliveries", "delivered", "idle", "status", "kind",
		"issuerRequestId", "cardId", "timeout")}
	number := func(name string) int {
		if !query.Has(name) {
			return 0
		}
		value, err := strconv.Atoi(query.Get(name))
		faults = append(faults, err)
		return value
	}
	flag := func(name string) bool {
		if !query.Has(name) {
			return false
		}
		value, err := strconv.ParseBool(query.Get(name))
		faults = append(faults, err)
		return value
	}
	condition := Condition{
		Cards:           number("cards"),
		Requests:        number("requests"),
		Deliveries:      number("deliveries"),
		Delivered:       flag("delivered"),
		Idle:            flag("idle"),
		Status:          query.Get("status"),
		Kind:            Kind(query.Get("kind")),
		IssuerRequestID: query.Get("issuerRequestId"),
		CardID:          query.Get("cardId"),
	}
	timeout := defaultWait
	if query.Has("timeout") {
		var err error
		timeout, err = time.ParseDuration(query.Get("timeout"))
		faults = append(faults, err)
	}
	return condition, min(timeout, maxWait), errors.Join(faults...)
}

// onlyKnown refuses misspelled parameters, which would otherwise widen what is asked for.
func onlyKnown(query url.Values, names ...string) error {
	known := make(map[string]bool)
	for _, name := range names {
		known[name] = true
	}
	for name := range query {
		if !known[name] {
			return errors.New("parameter is not known: " + name)
		}
	}
	return nil
}

func readBody(w http.ResponseWriter, r *http.Request) ([]byte, bool) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		replyError(w, http.StatusBadRequest, err)
		return nil, false
	}
	return body, true
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // a client that has gone is no fault of ours
}

func replyError(w http.ResponseWriter, status int, err error) {
	reply(w, status, map[string]string{"error": err.Error()})
}
