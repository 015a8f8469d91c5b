package d1sim

import (
	"encoding/json"
	"mime"
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"
)

// order is what the simulator needs to know of an order it accepted.
type order struct {
	issuerRequestID string
	channel         string
	delivery        string
	city            string // of the delivery address
}

// ships tells whether a card of this order is handed to a carrier.
func (o order) ships() bool {
	return o.channel == channelThales && o.delivery != "" && o.delivery != "NO_SHIPMENT"
}

// production takes an order for a card.
func (s *Sim) production(q *inquiry) answer {
	body, refusal := s.document(q)
	if refusal != nil {
		return *refusal
	}
	if f := checkOrder(body, q.settings); f != nil {
		return q.refuse(http.StatusBadRequest, f.code, f.String())
	}
	if q.settings.WrongKey {
		return q.refuse(http.StatusBadRequest, cryptoError, "encryptedData")
	}
	if f := s.checkCardData(body["encryptedData"].(string)); f != nil {
		return q.refuse(http.StatusBadRequest, f.code, f.String())
	}
	return s.accept(q, newOrder(body))
}

// document reads the JSON object that a request for a card brings, once the request may be made at all.
func (s *Sim) document(q *inquiry) (map[string]any, *answer) {
	refuse := func(code, text string) (map[string]any, *answer) {
		refusal := q.refuse(http.StatusBadRequest, code, text)
		return nil, &refusal
	}
	if refusal := s.authorize(q); refusal != nil {
		return nil, refusal
	}
	if !cardIDPattern.MatchString(chi.URLParam(q.Request, "cardId")) {
		return refuse(invalidFormat, "cardId")
	}
	if !correlationFits(q.Request) {
		return refuse(invalidFormat, "x-correlation-id")
	}
	if mediaType, _, _ := mime.ParseMediaType(q.Header.Get("Content-Type")); mediaType != "application/json" {
		return refuse("", "Content-Type must be application/json")
	}
	body, err := parseObject(q.body)
	if err != nil {
		return refuse("", "body must be one JSON object")
	}
	return body, nil
}

// newOrder picks from a body that was checked.
func newOrder(body map[string]any) order {
	services := body["services"].(map[string]any)
	shipment, _ := body["shipment"].(map[string]any)
	deliveryAddress, _ := shipment["deliveryAddress"].(map[string]any)
	text := func(object map[string]any, name string) string {
		value, _ := object[name].(string)
		return value
	}
	return order{
		issuerRequestID: text(body, "issuerRequestId"),
		channel:         text(body, "distributionChannel"),
		delivery:        text(services, "delivery"),
		city:            text(deliveryAddress, "city"),
	}
}

// accept makes the card, unless the order is a repeat and the settings say otherwise.
func (s *Sim) accept(q *inquiry, o order) answer {
	s.mu.Lock()
	defer s.mu.Unlock()

	first := s.book.byRequest[requestKey{q.record.IssuerID, o.issuerRequestID}]
	if first != nil {
		switch {
		case first.op.CardID != q.record.CardID:
			return q.refuse(http.StatusConflict, "", "issuerRequestId belongs to an order of another card")
		case s.settings.Repeat == RepeatConflict:
			return q.refuse(http.StatusConflict, "", "issuerRequestId was used before")
		case s.settings.Repeat == RepeatSame:
			return q.taken(first.op.OperationID)
		}
	}
	c := s.book.make(q.record.IssuerID, q.record.CardID, o, time.Now(), s.settings)
	q.record.CardMade = true
	if q.twice {
		s.book.make(q.record.IssuerID, q.record.CardID, o, time.Now(), s.settings)
	}
	s.announce()
	return q.taken(c.op.OperationID)
}

func (q *inquiry) taken(operationID string) answer {
	q.record.OperationID = operationID
	return jsonAnswer(http.StatusAccepted, map[string]string{"operationId": operationID})
}

// peekRequestID finds the issuerRequestId of a body not checked yet, for scripts and the history.
func peekRequestID(body []byte) string {
	var peek struct {
		IssuerRequestID string `json:"issuerRequestId"`
	}
	if json.Unmarshal(body, &peek) != nil || !requestIDPattern.MatchString(peek.IssuerRequestID) {
		return ""
	}
	return peek.IssuerRequestID
}

// correlationFits checks x-correlation-id, which is optional.
func correlationFits(r *http.Request) bool {
	values := r.Header.Values("X-Correlation-Id")
	return len(values) == 0 || len(values) == 1 && correlationPattern.MatchString(values[0])
}
