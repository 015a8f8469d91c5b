package api

import (
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/google/uuid"

	"cardorder/internal/order"
	"cardorder/internal/store"
)

// refreshOrder has D1 asked how an order stands. The answer is the order as it is
// before; what D1 says shows in it later.
func (s *server) refreshOrder(w http.ResponseWriter, r *http.Request) error {
	action, err := s.action(r, order.DecodeNothing)
	if err != nil {
		return err
	}
	o, err := s.Store.Refresh(r.Context(), action)
	if err != nil {
		return err
	}
	view := viewOrder(o)
	view.Asking = true
	writeOrder(w, http.StatusAccepted, view)
	return nil
}

// retryOrder starts the sending of an order anew.
func (s *server) retryOrder(w http.ResponseWriter, r *http.Request) error {
	issuer := s.issuers[chi.URLParam(r, "issuerId")]
	var retry store.Retry
	action, err := s.action(r, func(text []byte, rules *order.Rules) (faults order.Faults) {
		retry.EncryptedData, retry.DuplicateOverride, faults = order.DecodeRetry(text, rules)
		return issuer.checkJWE(retry.EncryptedData, time.Now(), faults)
	})
	if err != nil {
		return err
	}
	retry.Action = action
	annotate(r.Context(), slog.Bool("newCardData", retry.EncryptedData != ""))
	o, err := s.Store.Retry(r.Context(), retry)
	if err != nil {
		return err
	}
	writeOrder(w, http.StatusOK, viewOrder(o))
	return nil
}

// holdOrder keeps an order back: 200 when it is held, 202 when that is not certain yet.
func (s *server) holdOrder(w http.ResponseWriter, r *http.Request) error {
	var hold store.Hold
	action, err := s.action(r, func(text []byte, rules *order.Rules) (faults order.Faults) {
		hold.Reason, faults = order.DecodeHold(text, rules)
		return faults
	})
	if err != nil {
		return err
	}
	hold.Action = action
	o, err := s.Store.HoldOrder(r.Context(), hold)
	if err != nil {
		return err
	}
	status := http.StatusAccepted // also when D1's answer came at this very moment
	if o.State.Status == order.Held {
		status = http.StatusOK
	}
	writeOrder(w, status, viewOrder(o))
	return nil
}

// releaseOrder lifts the hold of an order, or takes back one that did not come true yet.
func (s *server) releaseOrder(w http.ResponseWriter, r *http.Request) error {
	var hold store.Hold
	action, err := s.action(r, func(text []byte, rules *order.Rules) (faults order.Faults) {
		hold.Reason, hold.DuplicateOverride, faults = order.DecodeRelease(text, rules)
		return faults
	})
	if err != nil {
		return err
	}
	hold.Action = action
	o, err := s.Store.ReleaseOrder(r.Context(), hold)
	if err != nil {
		return err
	}
	writeOrder(w, http.StatusOK, viewOrder(o))
	return nil
}

// addNote adds what somebody writes about an order.
func (s *server) addNote(w http.ResponseWriter, r *http.Request) error {
	var note store.NewNote
	key, wrongKey := idempotencyKey(r, s.Rules(chi.URLParam(r, "issuerId")).Guard)
	action, err := s.action(r, func(text []byte, rules *order.Rules) (faults order.Faults) {
		note.Text, faults = order.DecodeNote(text, rules)
		return faults
	}, wrongKey...)
	if err != nil {
		return err
	}
	note.Action, note.Key = action, key
	added, replayed, err := s.Store.AddNote(r.Context(), note)
	if e, ok := errors.AsType[*store.ConflictError](err); ok {
		p := newProblem(http.StatusUnprocessableEntity, "idempotency-conflict", "The key belongs to another note",
			"The order has a note with this Idempotency-Key, and its text is another one.")
		p.OrderID = e.OrderID.String()
		return p
	}
	if err != nil {
		return err
	}
	writeJSON(w, created(w, replayed), viewNote(added))
	return nil
}

// clearAttention says that somebody has dealt with an attention of an order.
func (s *server) clearAttention(w http.ResponseWriter, r *http.Request) error {
	clearance := store.Clearance{Attention: order.Attention(chi.URLParam(r, "code"))}
	if !order.KnownAttention(clearance.Attention) {
		return errNoSuchAttention
	}
	action, err := s.action(r, func(text []byte, rules *order.Rules) (faults order.Faults) {
		clearance.Note, faults = order.DecodeClear(text, rules)
		return faults
	})
	if err != nil {
		return err
	}
	clearance.Action = action
	annotate(r.Context(), slog.String("attention", string(clearance.Attention)))
	o, err := s.Store.ClearAttention(r.Context(), clearance)
	if err != nil {
		return err
	}
	writeOrder(w, http.StatusOK, viewOrder(o))
	return nil
}

// reorderOrder orders again what failed, was cancelled, or came back: a new order that
// stands in for the first one.
func (s *server) reorderOrder(w http.ResponseWriter, r *http.Request) error {
	issuer := s.issuers[chi.URLParam(r, "issuerId")]
	rules := s.Rules(issuer.ID)
	key, wrongKey := requiredKey(r, rules.Guard, "a reorder needs an Idempotency-Key header")
	var reorder order.Reorder
	action, err := s.action(r, func(text []byte, rules *order.Rules) (faults order.Faults) {
		reorder, faults = order.DecodeReorder(text, rules)
		card := order.Request{SensitiveData: reorder.SensitiveData, Production: order.Production{EncryptedData: reorder.EncryptedData}}
		faults = issuer.protectCardData(&card, faults)
		// What came in clear is cleared with the body that it is a part of.
		reorder.EncryptedData, reorder.SensitiveData = card.Production.EncryptedData, nil
		return faults
	}, wrongKey...)
	if err != nil {
		return err
	}
	original, err := s.Store.Original(r.Context(), issuer.ID, action.OrderID)
	if err != nil {
		return err
	}
	if issuer.Encrypter.Check(time.Now(), original.Production.EncryptedData) != nil {
		original.Production.EncryptedData = "" // it cannot serve again
	}
	request, faults := reorder.Again(original, rules)
	accepted, err := s.Store.Reorder(r.Context(), store.Reorder{Action: action, Reason: reorder.Reason, Acceptance: store.Acceptance{
		IssuerID: issuer.ID, IdempotencyKey: key, Client: action.Actor, Request: request, Faults: faults,
	}})
	if wrong, ok := errors.AsType[order.Faults](err); ok && original.Production.EncryptedData == "" {
		return withoutCardData(wrong)
	}
	if err != nil {
		return err
	}
	writeAccepted(w, r, accepted)
	return nil
}

// withoutCardData refuses a reorder that lacks card data, and tells what else is wrong.
func withoutCardData(faults order.Faults) error {
	lacks := func(f order.Fault) bool { return f.Pointer == "/encryptedData" && f.Code == order.CodeRequired }
	if !slices.ContainsFunc(faults, lacks) {
		return faults
	}
	p := *errCardDataRequired
	p.Errors = bodyFaults(faults)
	return &p
}

// action reads what every action on an order has: which order, which version of it,
// and a body for decode. Faults that were found before are told with the others.
func (s *server) action(r *http.Request, decode func([]byte, *order.Rules) order.Faults, found ...fault) (store.Action, error) {
	issuer := chi.URLParam(r, "issuerId")
	id, err := orderID(r)
	if err != nil {
		return store.Action{}, err
	}
	faults, err := readAction(r, s.Rules(issuer), decode)
	if err != nil {
		return store.Action{}, err
	}
	faults = append(found, faults...)
	if _, ok := readIfMatch(r); !ok {
		faults = append(faults, wrongIfMatch)
	}
	if len(faults) > 0 {
		return store.Action{}, invalid(faults...)
	}
	version, err := s.wantedVersion(r, issuer, id)
	return store.Action{IssuerID: issuer, OrderID: id, Actor: caller(r.Context()).Name, Version: version}, err
}

var wrongIfMatch = fault{Header: "If-Match", Code: order.CodeInvalidFormat, Detail: `must be * or a list of ETags such as "3"`}

// readAction reads the body of an action, which may be absent where no member of it
// is required, and returns what is wrong with it.
func readAction(r *http.Request, rules *order.Rules, decode func([]byte, *order.Rules) order.Faults) ([]fault, error) {
	buffer := takeOrderBody()
	defer buffer.release()
	text, err := readBody(r, buffer)
	switch {
	case err != nil:
		return nil, err
	case len(text) == 0: // also of a length that was not told before
		text = []byte("{}")
	case !isJSON(r):
		return nil, errContentType
	}
	return bodyFaults(decode(text, rules)), nil
}

// readCall is readAction for a call of which nothing else can be wrong.
func readCall(r *http.Request, rules *order.Rules, decode func([]byte, *order.Rules) order.Faults) error {
	faults, err := readAction(r, rules, decode)
	if err == nil && len(faults) > 0 {
		err = invalid(faults...)
	}
	return err
}

// wantedVersion is the version that an order must have by If-Match (RFC 9110, 13.1.1),
// 0 for any. The store looks at it under its lock; here only the one of several is
// picked that the order has.
func (s *server) wantedVersion(r *http.Request, issuer string, id uuid.UUID) (int, error) {
	tags, _ := readIfMatch(r)
	if len(tags) == 0 || slices.Contains(tags, "*") {
		return 0, nil
	}
	if version, ok := versionOf(tags[0]); ok && len(tags) == 1 {
		return version, nil
	}
	o, err := s.Store.Order(r.Context(), issuer, id)
	if err != nil {
		return 0, err
	}
	if !slices.Contains(tags, etag(o.State.Version)) {
		return 0, store.ErrVersion
	}
	return o.State.Version, nil
}

// versionOf reads an ETag as etag writes it.
func versionOf(tag string) (int, bool) {
	version, err := strconv.Atoi(strings.Trim(tag, `"`))
	return version, err == nil && version > 0 && tag == etag(version)
}

// readIfMatch returns the ETags of the If-Match header, weak ones with their W/: by
// strong comparison those match nothing. It returns none when there is no such header,
// and ok is false when the header is not of its form.
func readIfMatch(r *http.Request) (tags []string, ok bool) {
	values := r.Header.Values("If-Match")
	if len(values) == 0 {
		return nil, true
	}
	rest := strings.Join(values, ",")
	if strings.Trim(rest, " \t") == "*" {
		return []string{"*"}, true
	}
	for {
		rest = strings.TrimLeft(rest, " \t,")
		if rest == "" {
			return tags, len(tags) > 0
		}
		opaque := strings.TrimPrefix(rest, "W/")
		end := -1
		if strings.HasPrefix(opaque, `"`) {
			end = strings.IndexByte(opaque[1:], '"')
		}
		if end < 0 || strings.ContainsFunc(opaque[1:1+end], func(c rune) bool { return c <= ' ' || c == 0x7f }) {
			return nil, false
		}
		length := len(rest) - len(opaque) + end + 2
		tags = append(tags, rest[:length])
		rest = strings.TrimLeft(rest[length:], " \t")
		if rest != "" && rest[0] != ',' {
			return nil, false
		}
	}
}
