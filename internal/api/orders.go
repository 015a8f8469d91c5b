package api

import (
	"errors"
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

// orderBody is a buffer for one order: a body is read into one place only, which is
// cleared afterwards. It is one byte larger than what is allowed.
type orderBody struct {
	bytes [maxOrderBody + 1]byte
	used  int
}

var orderBodies = sync.Pool{New: func() any { return new(orderBody) }}

func takeOrderBody() *orderBody {
	return orderBodies.Get().(*orderBody) //nolint:errcheck // the pool holds nothing else
}

// release clears the buffer, for it may hold card data, and gives it back.
func (b *orderBody) release() {
	clear(b.bytes[:b.used])
	b.used = 0
	orderBodies.Put(b)
}

// placeOrder stores an order: 201 for a new one, 200 for a repeated request.
func (s *server) placeOrder(w http.ResponseWriter, r *http.Request) error {
	issuer := s.issuers[chi.URLParam(r, "issuerId")]
	rules := s.Rules(issuer.ID)
	q := newQuery(r)
	dryRun := q.flag("dryRun")
	key, wrongKey := idempotencyKey(r, rules.Guard)
	buffer := takeOrderBody()
	defer buffer.release()
	body, err := readJSON(r, buffer)
	if err != nil {
		return err
	}
	request, faults := order.Decode(body, rules)
	faults = issuer.protectCardData(request, request.CheckNotBefore(time.Now(), faults))
	if key == "" && wrongKey == nil && lacksRequestID(request, faults) {
		wrongKey = []fault{{
			Header: "Idempotency-Key", Code: order.CodeRequired,
			Detail: "an order needs an issuerRequestId, an Idempotency-Key header, or both",
		}}
	}
	if wrong := append(q.faults(), wrongKey...); len(wrong) > 0 {
		return invalid(append(wrong, bodyFaults(faults)...)...)
	}
	acceptance := store.Acceptance{
		IssuerID: issuer.ID, IdempotencyKey: key, Client: caller(r.Context()).Name, Request: request, Faults: faults,
	}
	if dryRun {
		return s.tryOrder(w, r, acceptance, rules)
	}
	accepted, err := s.Store.Accept(r.Context(), acceptance)
	if err != nil {
		return err
	}
	writeAccepted(w, r, accepted)
	return nil
}

// writeAccepted answers with the order that a request led to: 201 for a new one, 200 for
// one that was there.
func writeAccepted(w http.ResponseWriter, r *http.Request, accepted *store.Accepted) {
	o := accepted.Order
	annotate(r.Context(), slog.String("orderId", o.ID.String()),
		slog.String("issuerRequestId", o.IssuerRequestID), slog.Bool("replayed", accepted.Replayed))
	view := viewOrder(o)
	view.Warnings = warnings(accepted)
	w.Header().Set("Location", "/v1/issuers/"+url.PathEscape(o.IssuerID)+"/orders/"+view.ID)
	writeOrder(w, created(w, accepted.Replayed), view)
}

// writeOrder answers with an order and its version.
func writeOrder(w http.ResponseWriter, status int, view orderView) {
	w.Header().Set("ETag", etag(view.Version))
	writeJSON(w, status, view)
}

// created is the status of an answer to a request that stores something: 201, or 200 when
// an earlier request did, which a header tells too.
func created(w http.ResponseWriter, replayed bool) (status int) {
	if replayed {
		w.Header().Set("Idempotent-Replayed", "true")
		return http.StatusOK
	}
	return http.StatusCreated
}

// warnings are those of the order, and those of this answer to it.
func warnings(a *store.Accepted) []string {
	list := append([]string{}, a.Order.Warnings...)
	if a.CardDataDiffers {
		list = append(list, order.WarningCardDataNotCompared)
	}
	return list
}

// tryOrder tells what would become of an order, and stores nothing.
func (s *server) tryOrder(w http.ResponseWriter, r *http.Request, a store.Acceptance, rules *order.Rules) error {
	accepted, err := s.Store.DryRun(r.Context(), a)
	if err != nil {
		return err
	}
	view := dryRunView{
		DryRun: true, Outcome: store.RowAccepted, Status: accepted.Order.State.Status, EndsAt: accepted.Order.State.EndsAt,
		timesView: viewTimes(accepted.Order),
		Warnings:  warnings(accepted), PrintedName: order.PrintedName(a.Request.SensitiveData),
	}
	if accepted.Replayed {
		view.Outcome, view.Order = store.RowReplayed, accepted.Order.ID.String()
	}
	if rules.Programs != nil {
		view.Program = a.Request.Production.CardProductID
	}
	writeJSON(w, http.StatusOK, view)
	return nil
}

// lacksRequestID tells that a request was read and holds no issuerRequestId, not even
// a wrong one.
func lacksRequestID(request *order.Request, faults order.Faults) bool {
	return request != nil && request.Production.IssuerRequestID == "" &&
		!slices.ContainsFunc(faults, func(f order.Fault) bool { return f.Pointer == "/issuerRequestId" })
}

// protectCardData makes sure that card data is a JWE which only D1 can open: it
// checks the caller's, or makes it from card data that came in clear if nothing is
// wrong with the request. It returns the faults and those it found.
func (in *Issuer) protectCardData(request *order.Request, faults order.Faults) order.Faults {
	if request == nil {
		return faults
	}
	add := func(pointer, code, detail string) {
		faults = append(faults, order.Fault{Pointer: pointer, Code: code, Detail: detail})
	}
	now := time.Now()
	faults = in.checkJWE(request.Production.EncryptedData, now, faults)
	switch {
	case request.SensitiveData == nil:
	case !in.SensitiveData:
		add("/sensitiveData", order.CodeNotAllowed, "card data in clear is not allowed for this issuer; send encryptedData")
	case len(faults) == 0:
		jwe, err := in.Encrypter.Encrypt(now, request.SensitiveData)
		if err != nil {
			add("/sensitiveData", order.CodeInvalidValue, err.Error())
		}
		request.Production.EncryptedData = jwe
	}
	return faults
}

// checkJWE returns the faults and what is wrong with a JWE, if there is one: D1 would
// refuse it hours later.
func (in *Issuer) checkJWE(jwe string, now time.Time, faults order.Faults) order.Faults {
	if jwe == "" {
		return faults
	}
	if err := in.Encrypter.Check(now, jwe); err != nil {
		faults = append(faults, order.Fault{Pointer: "/encryptedData", Code: order.CodeInvalidFormat, Detail: err.Error()})
	}
	return faults
}

// idempotencyKey reads the header, or tells what is wrong with it.
func idempotencyKey(r *http.Request, guard order.PANGuard) (string, []fault) {
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
		return "", []fault{{Header: "Idempotency-Key", Code: code, Detail: detail}}
	}
	return values[0], nil
}

// requiredKey is idempotencyKey where there has to be one, with the detail of the fault when
// there is none.
func requiredKey(r *http.Request, guard order.PANGuard, detail string) (string, []fault) {
	key, wrong := idempotencyKey(r, guard)
	if key == "" && wrong == nil {
		wrong = []fault{{Header: "Idempotency-Key", Code: order.CodeRequired, Detail: detail}}
	}
	return key, wrong
}

// readJSON reads a body of JSON into buffer.
func readJSON(r *http.Request, buffer *orderBody) ([]byte, error) {
	if !isJSON(r) {
		return nil, errContentType
	}
	return readBody(r, buffer)
}

func isJSON(r *http.Request) bool {
	media, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	charset := params["charset"]
	return err == nil && r.Header.Get("Content-Encoding") == "" && media == "application/json" && (charset == "" || strings.EqualFold(charset, "utf-8"))
}

// readBody reads a body of bounded length into buffer.
func readBody(r *http.Request, buffer *orderBody) ([]byte, error) {
	for buffer.used < len(buffer.bytes) {
		n, err := r.Body.Read(buffer.bytes[buffer.used:])
		buffer.used += n
		if buffer.used == len(buffer.bytes) {
			break
		}
		if errors.Is(err, io.EOF) {
			return buffer.bytes[:buffer.used:buffer.used], nil
		}
		if err != nil {
			return nil, newProblem(http.StatusBadRequest, "incomplete-body", "The body ended too early", nothingStored)
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
	writeOrder(w, http.StatusOK, viewOrder(o))
	return nil
}

func orderID(r *http.Request) (uuid.UUID, error) {
	id, ok := parseID(chi.URLParam(r, "orderId"))
	if !ok {
		return uuid.Nil, errNoSuchOrder
	}
	annotate(r.Context(), slog.String("orderId", id.String()))
	return id, nil
}

// parseID reads an id in the one form in which this service writes it.
func parseID(text string) (id uuid.UUID, ok bool) {
	id, err := uuid.Parse(text)
	if err != nil || len(text) != 36 {
		return uuid.Nil, false
	}
	return id, true
}

// etag is an order's version.
func etag(version int) string { return `"` + strconv.Itoa(version) + `"` }

func (s *server) listOrders(w http.ResponseWriter, r *http.Request) error {
	filter, err := readFilter(r)
	if err != nil {
		return err
	}
	limit := filter.Limit
	filter.Limit++ // one more tells whether there is a next page
	orders, err := s.Store.Orders(r.Context(), chi.URLParam(r, "issuerId"), filter)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, pageOf(orders, limit, viewOrder, func(o *store.Order) uuid.UUID { return o.ID }))
	return nil
}

// readFilter reads the query of a list of orders.
func readFilter(r *http.Request) (store.Filter, error) {
	q := newQuery(r)
	f := store.Filter{
		CardID: q.visible("cardId"), ConsumerID: q.visible("consumerId"), CardProductID: q.visible("cardProductId"),
		GroupID: q.visible("groupId"), IssuerRequestID: q.visible("issuerRequestId"), IdempotencyKey: q.visible("idempotencyKey"),
		OperationID: q.visible("operationId"), TrackingNumber: q.visible("trackingNumber"),
		CreatedFrom: q.time("createdFrom"), CreatedTo: q.time("createdTo"),
	}
	q.each("status", func(v string) string {
		for part := range strings.SplitSeq(v, ",") {
			if !order.KnownStatus(order.Status(part)) {
				return "is not a status of an order"
			}
			f.Statuses = append(f.Statuses, order.Status(part))
		}
		return ""
	})
	q.read("distributionChannel", func(v string) string {
		f.Channel = order.Channel(v)
		if !slices.Contains(order.Channels, f.Channel) {
			return "must be THALES, INSTANT or CENTRAL"
		}
		return ""
	})
	q.read("batchId", func(v string) string {
		if f.BatchID, _ = parseID(v); f.BatchID == uuid.Nil {
			return "must be the id of a batch"
		}
		return ""
	})
	q.read("attention", func(v string) string {
		switch f.Attention = order.Attention(v); {
		case v == "true":
			f.Attention = store.AnyAttention
		case !order.KnownAttention(f.Attention):
			return "must be true or the code of an attention"
		}
		return ""
	})
	q.read("late", func(v string) string {
		f.Late = v == "true"
		if !f.Late {
			return "must be true or absent"
		}
		return ""
	})
	f.Limit, f.Before = q.page()
	return f, q.err()
}
