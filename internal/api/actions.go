package api

import (
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
	w.Header().Set("ETag", etag(o))
	writeJSON(w, http.StatusAccepted, view)
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
	w.Header().Set("ETag", etag(o))
	writeJSON(w, http.StatusOK, viewOrder(o))
	return nil
}

// action reads what every action on an order has: which order, which version of it,
// and a body for decode.
func (s *server) action(r *http.Request, decode func([]byte, *order.Rules) order.Faults) (store.Action, error) {
	issuer := chi.URLParam(r, "issuerId")
	id, err := orderID(r)
	if err != nil {
		return store.Action{}, err
	}
	faults, err := readAction(r, s.Rules(issuer), decode)
	if err != nil {
		return store.Action{}, err
	}
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
	buffer := orderBodies.Get().(*orderBody) //nolint:errcheck // the pool holds nothing else
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
	if !slices.Contains(tags, etag(o)) {
		return 0, store.ErrVersion
	}
	return o.State.Version, nil
}

// versionOf reads an ETag as etag writes it.
func versionOf(tag string) (int, bool) {
	version, err := strconv.Atoi(strings.Trim(tag, `"`))
	return version, err == nil && version > 0 && tag == `"`+strconv.Itoa(version)+`"`
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
