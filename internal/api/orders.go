package api

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/google/uuid"

	"cardorder/internal/order"
	"cardorder/internal/store"
)

// maxOrderBody is the largest order taken, in bytes: several times what the
// longest members add up to.
const maxOrderBody = 128 << 10

// orderBodies are buffers for one order each: a body is read into one place only,
// which is cleared afterwards.
var orderBodies = sync.Pool{New: func() any { return new([maxOrderBody + 1]byte) }}

// placeOrder stores an order: 201 for a new one, 200 for a repeated request.
func (s *server) placeOrder(w http.ResponseWriter, r *http.Request) error {
	issuer := s.issuers[chi.URLParam(r, "issuerId")]
	rules := s.Rules(issuer.ID)
	key, err := idempotencyKey(r, rules.Guard)
	if err != nil {
		return err
	}
	buffer := orderBodies.Get().(*[maxOrderBody + 1]byte) //nolint:errcheck // the pool holds nothing else
	defer func() {
		clear(buffer[:]) // it may hold card data
		orderBodies.Put(buffer)
	}()
	body, err := readJSON(r, buffer[:])
	if err != nil {
		return err
	}
	request, faults := order.Decode(body, rules)
	if faults == nil {
		faults = protectCardData(issuer, request)
	}
	if faults != nil {
		return invalidBody(faults)
	}
	if key == "" && request.Production.IssuerRequestID == "" {
		return invalid(fault{
			Header: "Idempotency-Key", Code: order.CodeRequired,
			Detail: "an order needs an issuerRequestId, an Idempotency-Key header, or both",
		})
	}
	accepted, err := s.Store.Accept(r.Context(), store.Acceptance{
		IssuerID: issuer.ID, IdempotencyKey: key, Client: caller(r.Context()).Name, Request: request,
	})
	if err != nil {
		return err
	}
	annotate(r.Context(), slog.String("orderId", accepted.Order.ID.String()),
		slog.String("issuerRequestId", accepted.Order.IssuerRequestID), slog.Bool("replayed", accepted.Replayed))
	view := viewOrder(accepted.Order)
	if accepted.CardDataDiffers {
		view.Warnings = append(view.Warnings, order.WarningCardDataNotCompared)
	}
	status := http.StatusCreated
	if accepted.Replayed {
		status = http.StatusOK
		w.Header().Set("Idempotent-Replayed", "true")
	}
	w.Header().Set("Location", "/v1/issuers/"+url.PathEscape(issuer.ID)+"/orders/"+view.ID)
	w.Header().Set("ETag", etag(accepted.Order))
	writeJSON(w, status, view)
	return nil
}

// protectCardData makes sure that card data is a JWE which only D1 can open:
// it checks the caller's, or makes it from card data that came in clear.
func protectCardData(issuer *Issuer, request *order.Request) order.Faults {
	now := time.Now()
	if request.SensitiveData == nil {
		if err := issuer.Encrypter.Check(now, request.Production.EncryptedData); err != nil {
			return order.Faults{{Pointer: "/encryptedData", Code: order.CodeInvalidFormat, Detail: err.Error()}}
		}
		return nil
	}
	if !issuer.SensitiveData {
		return order.Faults{{
			Pointer: "/sensitiveData", Code: order.CodeNotAllowed,
			Detail: "card data in clear is not allowed for this issuer; send encryptedData",
		}}
	}
	jwe, err := issuer.Encrypter.Encrypt(now, request.SensitiveData)
	if err != nil {
		return order.Faults{{Pointer: "/sensitiveData", Code: order.CodeInvalidValue, Detail: err.Error()}}
	}
	request.Production.EncryptedData = jwe
	return nil
}

func idempotencyKey(r *http.Request, guard order.PANGuard) (string, error) {
	values := r.Header.Values("Idempotency-Key")
	if len(values) == 0 {
		return "", nil
	}
	code, detail := order.CodeInvalidFormat, order.IdempotencyKey(values[0])
	switch {
	case len(values) > 1:
		detail = "must be sent once"
	case guard.Finds(values[0], false):
		code, detail = order.CodeCardNumber, "holds what looks like a card number"
	}
	if detail != "" {
		return "", invalid(fault{Header: "Idempotency-Key", Code: code, Detail: detail})
	}
	return values[0], nil
}

// readJSON reads a body of JSON into buffer, which is one byte larger than what
// is allowed.
func readJSON(r *http.Request, buffer []byte) ([]byte, error) {
	media, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	charset := params["charset"]
	if err != nil || r.Header.Get("Content-Encoding") != "" || media != "application/json" || charset != "" && !strings.EqualFold(charset, "utf-8") {
		return nil, errContentType
	}
	for n := 0; n < len(buffer); {
		read, err := r.Body.Read(buffer[n:])
		n += read
		if n == len(buffer) {
			break
		}
		if errors.Is(err, io.EOF) {
			return buffer[:n:n], nil
		}
		if err != nil {
			return nil, newProblem(http.StatusBadRequest, "incomplete-body", "The body ended too early", "Nothing was stored.")
		}
	}
	return nil, errTooLarge
}

func (s *server) getOrder(w http.ResponseWriter, r *http.Request) error {
	id, err := orderID(r)
	if err != nil {
		return err
	}
	o, err := s.Store.Order(r.Context(), chi.URLParam(r, "issuerId"), id)
	if err != nil {
		return err
	}
	w.Header().Set("ETag", etag(o))
	writeJSON(w, http.StatusOK, viewOrder(o))
	return nil
}

func orderID(r *http.Request) (uuid.UUID, error) {
	text := chi.URLParam(r, "orderId")
	id, err := uuid.Parse(text)
	if err != nil || len(text) != 36 {
		return uuid.Nil, errNoSuchOrder
	}
	annotate(r.Context(), slog.String("orderId", id.String()))
	return id, nil
}

// etag is an order's version.
func etag(o *store.Order) string { return `"` + strconv.Itoa(o.State.Version) + `"` }

func (s *server) getTimeline(w http.ResponseWriter, r *http.Request) error {
	id, err := orderID(r)
	if err != nil {
		return err
	}
	entries, err := s.Store.Timeline(r.Context(), chi.URLParam(r, "issuerId"), id)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, page[timelineEntry]{Data: viewTimeline(entries)})
	return nil
}

// page is a part of a list; NextCursor leads to the next one, and is null at
// the end.
type page[T any] struct {
	Data       []T     `json:"data"`
	NextCursor *string `json:"nextCursor"`
}

// Page sizes of lists.
const (
	defaultLimit = 50
	maxLimit     = 200
)

func (s *server) listOrders(w http.ResponseWriter, r *http.Request) error {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return invalid(fault{Code: order.CodeInvalidFormat, Detail: "the query is not of the form name=value&name=value"})
	}
	filter, faults := parseFilter(query)
	if len(faults) > 0 {
		return invalid(faults...)
	}
	limit := filter.Limit
	filter.Limit++ // one more tells whether there is a next page
	orders, err := s.Store.Orders(r.Context(), chi.URLParam(r, "issuerId"), filter)
	if err != nil {
		return err
	}
	var answer page[orderView]
	if len(orders) > limit {
		orders = orders[:limit]
		cursor := encodeCursor(orders[limit-1].ID)
		answer.NextCursor = &cursor
	}
	answer.Data = make([]orderView, len(orders))
	for i, o := range orders {
		answer.Data[i] = viewOrder(o)
	}
	writeJSON(w, http.StatusOK, answer)
	return nil
}

// parseFilter reads the query of a list. A parameter that is not known is a
// fault: ignoring it would answer another question.
func parseFilter(query url.Values) (store.Filter, []fault) {
	f := store.Filter{Limit: defaultLimit}
	var faults []fault
	bad := func(name, detail string) {
		faults = append(faults, fault{Parameter: name, Code: order.CodeInvalidValue, Detail: detail})
	}
	names := make([]string, 0, len(query))
	for name := range query {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		values := query[name]
		if name != "status" && len(values) > 1 {
			bad(name, "may be given once")
			continue
		}
		value := values[0]
		switch name {
		case "status":
			for _, v := range strings.Split(strings.Join(values, ","), ",") {
				if !order.KnownStatus(order.Status(v)) {
					bad(name, "is not a status of an order")
					break
				}
				f.Statuses = append(f.Statuses, order.Status(v))
			}
		case "cardId", "issuerRequestId", "idempotencyKey", "operationId":
			if order.IdempotencyKey(value) != "" { // the widest of the four
				bad(name, "must be 1 to 128 visible ASCII characters")
				break
			}
			*map[string]*string{
				"cardId": &f.CardID, "issuerRequestId": &f.IssuerRequestID,
				"idempotencyKey": &f.IdempotencyKey, "operationId": &f.OperationID,
			}[name] = value
		case "attention":
			if value != "true" {
				bad(name, "must be true or absent")
			}
			f.Attention = true
		case "limit":
			n, err := strconv.Atoi(value)
			if err != nil || n < 1 || n > maxLimit {
				bad(name, fmt.Sprintf("must be 1 to %d", maxLimit))
			}
			f.Limit = n
		case "cursor":
			id, err := decodeCursor(value)
			if err != nil {
				bad(name, "is not a cursor of this list")
			}
			f.Before = id
		default:
			unknown := fault{Code: order.CodeUnknownMember, Detail: "is not a parameter of this list"}
			if order.PlainName(name) {
				unknown.Parameter = name
			}
			faults = append(faults, unknown)
		}
	}
	return f, faults
}

// A cursor is the id of the last order of a page, in a form that nobody takes
// for one. The first byte is its version.
const cursorVersion = 1

func encodeCursor(id uuid.UUID) string {
	return base64.RawURLEncoding.EncodeToString(append([]byte{cursorVersion}, id[:]...))
}

func decodeCursor(text string) (uuid.UUID, error) {
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(b) != 17 || b[0] != cursorVersion {
		return uuid.Nil, errors.New("not a cursor")
	}
	return uuid.UUID(b[1:]), nil
}
