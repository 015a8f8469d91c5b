package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"github.com/google/uuid"

	"cardorder/internal/order"
	"cardorder/internal/store"
)

// problem is an RFC 9457 problem document. It is also the error by which
// handlers end a request: one place turns it into an answer.
type problem struct {
	Type     string  `json:"type"`
	Title    string  `json:"title"`
	Status   int     `json:"status"`
	Detail   string  `json:"detail,omitempty"`
	Instance string  `json:"instance,omitempty"` // the request's correlation id, as a URN
	OrderID  string  `json:"conflictingOrder,omitempty"`
	BatchID  string  `json:"conflictingBatch,omitempty"`
	ChangeID string  `json:"conflictingChange,omitempty"`
	Errors   []fault `json:"errors,omitempty"`
}

// fault is one thing wrong with a request, in its body, query or headers.
type fault struct {
	Pointer   *string `json:"pointer,omitempty"`   // RFC 6901, into the body
	Parameter string  `json:"parameter,omitempty"` // of the query
	Header    string  `json:"header,omitempty"`
	Code      string  `json:"code"`
	Detail    string  `json:"detail"`
	Rule      string  `json:"rule,omitempty"` // of the program that refuses it
}

func (p *problem) Error() string { return p.Title }

// problemTypes is the prefix of every problem's type, a stable name rather than
// a page.
const problemTypes = "urn:cardorder:problem:"

func newProblem(status int, name, title, detail string) *problem {
	return &problem{Type: problemTypes + name, Title: title, Status: status, Detail: detail}
}

// after is the problem with what it left behind as its detail.
func (p *problem) after(left string) *problem {
	copied := *p
	copied.Detail = left
	return &copied
}

const nothingStored = "Nothing was stored."

var (
	errUnauthorized = newProblem(http.StatusUnauthorized, "unauthorized", "No valid bearer token",
		"The request needs an Authorization header with a bearer token that is known here.")
	errNoSuchPath   = newProblem(http.StatusNotFound, "not-found", "There is nothing here", "")
	errNoSuchIssuer = newProblem(http.StatusNotFound, "unknown-issuer", "Unknown issuer",
		"The issuer in the path is not configured here.")
	errNoSuchOrder = newProblem(http.StatusNotFound, "unknown-order", "Unknown order",
		"The issuer has no order with this id.")
	errNoSuchBatch = newProblem(http.StatusNotFound, "unknown-batch", "Unknown batch",
		"The issuer has no batch with this id.")
	errNoSuchChange = newProblem(http.StatusNotFound, "unknown-change", "Unknown change",
		"The order has no change with this id.")
	errNoSuchLane = newProblem(http.StatusNotFound, "unknown-lane", "Unknown lane",
		"The issuer has no lane of this name. Its D1 is the lane d1.")
	errNoSuchNotification = newProblem(http.StatusNotFound, "unknown-notification", "Unknown notification",
		"The issuer has no notification with this number. One that was about no order is kept for seven days.")
	errVersion = newProblem(http.StatusPreconditionFailed, "version-mismatch", "The order has another version",
		"It has changed since it was read: none of the versions in If-Match is its own. Read it again. Nothing was changed.")
	errNotSent = newProblem(http.StatusConflict, "not-sent", "The order was not sent yet",
		"D1 has never heard of this order, so there is nothing to ask about. Nothing was changed.")
	errNotRetryable = newProblem(http.StatusConflict, "not-retryable", "The order needs no retry",
		"Only an order that was rejected, was given up, or whose outcome is unknown can be retried. Read it again: "+
			"an earlier call may have retried it. One that failed or was cancelled is ordered anew. Nothing was changed.")
	errNotHoldable = newProblem(http.StatusConflict, "not-holdable", "The order cannot be held",
		"D1 has this order, or it has ended, or somebody wants it cancelled. What D1 has can only be changed or cancelled there. Nothing was changed.")
	errNotHeld = newProblem(http.StatusConflict, "not-held", "The order is not held",
		"Nobody holds this order. Read it again: an earlier call may have released it. Nothing was changed.")
	errNoSuchAttention = newProblem(http.StatusNotFound, "unknown-attention", "Unknown attention",
		"There is no attention with this code.")
	errNotRaised = newProblem(http.StatusConflict, "not-raised", "The order has no such attention",
		"There is nothing to clear: it was never raised, or its cause has ended. Nothing was changed.")
	errNotReorderable = newProblem(http.StatusConflict, "not-reorderable", "The order cannot be ordered again",
		"Only an order that failed, was cancelled, or came back can be ordered again, and only one whose content is here: "+
			"not one that an older system placed. Nothing was stored.")
	errCardDataRequired = newProblem(http.StatusUnprocessableEntity, "card-data-required", "New card data is required",
		"The card data of the first order cannot serve again: D1's key for it is not in use any more. Send encryptedData. Nothing was stored.")
	errShipped = newProblem(http.StatusConflict, "already-shipped", "The card has left",
		"The order was shipped: nothing about it can be changed any more, and the card arrives unless the carrier stops it. Nothing was changed.")
	errTooManyChanges = newProblem(http.StatusConflict, "too-many-changes", "The order has had too many changes",
		"Twenty changes of an order go to D1, and ten more cancels. Nothing was stored.")
	errNotChangeable = newProblem(http.StatusConflict, "not-changeable", "The order cannot be changed",
		"It has ended, or D1 refused it, so that it can only be retried or cancelled. Read it again. Nothing was changed.")
	errBatchType = newProblem(http.StatusUnsupportedMediaType, "unsupported-media-type", "Unsupported media type",
		"A batch must be application/x-ndjson or text/csv in UTF-8, with no Content-Encoding or gzip.")
	errIncompleteBatch = newProblem(http.StatusBadRequest, "incomplete-body", "The body ended too early",
		"What was read is stored. The same file with the same Idempotency-Key goes on from there.")
	errBatchBusy = newProblem(http.StatusConflict, "batch-in-progress", "The batch is being uploaded",
		"Another request uploads this batch at this moment. Send it again when that one has ended.")
	errBatchCancelled = newProblem(http.StatusConflict, "batch-cancelled", "The batch was cancelled",
		"No further row of it is taken. Use another key for another batch.")
	errStopping = newProblem(http.StatusServiceUnavailable, "unavailable", "This server is stopping",
		"What was read is stored. The same file with the same Idempotency-Key goes on from there.")
	errMethod      = newProblem(http.StatusMethodNotAllowed, "method-not-allowed", "Method not allowed here", "")
	errContentType = newProblem(http.StatusUnsupportedMediaType, "unsupported-media-type", "Unsupported media type",
		"The body must be application/json in UTF-8, without a Content-Encoding.")
	errTooLarge = newProblem(http.StatusRequestEntityTooLarge, "too-large", "The body is too large", "A body of JSON has at most 131072 bytes.")
	errTooSlow  = newProblem(http.StatusUnprocessableEntity, "query-too-slow", "The query takes too long",
		"Ask for less: add a filter that few orders match, as cardId or issuerRequestId.")
	errInternal = newProblem(http.StatusInternalServerError, "internal", "Something went wrong here",
		"The fault is on this side and was logged. It is safe to send the same request again, its key included.")
	errUnavailable = newProblem(http.StatusServiceUnavailable, "unavailable", "The database does not answer",
		"Nothing is known to be stored. It is safe to send the same request again, its key included.")
)

func invalid(faults ...fault) *problem {
	p := newProblem(http.StatusBadRequest, "invalid-request", "The request is not valid", "Every fault is listed. Nothing was changed.")
	p.Errors = faults
	return p
}

func invalidBody(faults order.Faults) *problem { return invalid(bodyFaults(faults)...) }

func bodyFaults(faults order.Faults) []fault {
	var list []fault
	for _, f := range faults {
		list = append(list, fault{Pointer: &f.Pointer, Code: f.Code, Detail: f.Detail, Rule: f.Rule})
	}
	return list
}

func conflict(e *store.ConflictError) *problem {
	p := newProblem(http.StatusConflict, "duplicate-order", "The card has another order",
		"Another order for this card is open, or the card was created a short time ago. "+
			"If a second card is really wanted, say why in duplicateOverride.")
	if e.Kind == store.ContentDiffers {
		p = newProblem(http.StatusUnprocessableEntity, "idempotency-conflict", "The key belongs to another request",
			"An order with this issuerRequestId or Idempotency-Key exists, and its request was a different one.")
	}
	if e.OrderID != uuid.Nil {
		p.OrderID = e.OrderID.String()
	}
	return p
}

// asProblem turns any error of a handler into what the caller may know of it.
func asProblem(err error) *problem {
	if p, ok := errors.AsType[*problem](err); ok {
		return p
	}
	if faults, ok := errors.AsType[order.Faults](err); ok {
		return invalidBody(faults)
	}
	if e, ok := errors.AsType[*store.ConflictError](err); ok {
		return conflict(e)
	}
	if e, ok := errors.AsType[*store.BatchConflictError](err); ok {
		p := newProblem(http.StatusUnprocessableEntity, "idempotency-conflict", "The key belongs to another batch",
			"A batch with this Idempotency-Key exists, and its file or its options were others.")
		p.BatchID = e.BatchID.String()
		return p
	}
	if e, ok := errors.AsType[*store.ChangeConflictError](err); ok {
		return changeConflict(e)
	}
	for known, p := range map[error]*problem{
		store.ErrNoNotification: errNoSuchNotification,
		store.ErrNotFound:       errNoSuchOrder, store.ErrTooSlow: errTooSlow,
		store.ErrBatchBusy: errBatchBusy, store.ErrBatchCancelled: errBatchCancelled,
		store.ErrVersion: errVersion, store.ErrNotSent: errNotSent, store.ErrNotRetryable: errNotRetryable,
		store.ErrNotHoldable: errNotHoldable, store.ErrNotHeld: errNotHeld, store.ErrNotRaised: errNotRaised,
		store.ErrNotReorderable: errNotReorderable,
		store.ErrNoChange:       errNoSuchChange, store.ErrShipped: errShipped, store.ErrNotChangeable: errNotChangeable,
		store.ErrTooManyChanges: errTooManyChanges,
	} {
		if errors.Is(err, known) {
			return p
		}
	}
	if store.Unavailable(err) || errors.Is(err, context.Canceled) { // the caller is gone
		return errUnavailable
	}
	return errInternal
}

// writeProblem answers with p as it concerns this request.
func writeProblem(w http.ResponseWriter, r *http.Request, p *problem) {
	copied := *p
	copied.Instance = "urn:cardorder:request:" + correlationID(r.Context())
	if p.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="cardorder"`)
	}
	switch {
	case p.Status == http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", "1")
	case p.Type == errBatchBusy.Type:
		w.Header().Set("Retry-After", "5")
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(&copied) // the caller is gone if this fails
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the caller is gone if this fails
}
