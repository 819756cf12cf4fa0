package server

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// This file defines the signed tokens in the links to services and files: JSON
// Web Tokens (RFC 7519) with HMAC-SHA256, which only the servers on this state
// folder make and read. Without the key's file, a new key is made and every link
// from before is void.

// What a token is for.
const (
	forService  = "sbx-star/service"
	forDownload = "sbx-star/download"
)

// claims are what a token says.
type claims struct {
	Audience     string   `json:"aud"`
	Box          string   `json:"sub"`           // its id
	Expires      int64    `json:"exp,omitempty"` // Unix time; 0 is never
	Port         int      `json:"port,omitempty"`
	EmbedOrigins []string `json:"embed_origins,omitempty"`
	Path         string   `json:"path,omitempty"`
	ContentType  string   `json:"content_type,omitempty"`
	Disposition  string   `json:"content_disposition,omitempty"`
}

var (
	errToken   = errors.New("the token is not one of this server")
	errExpired = errors.New("the token has expired")
)

// expire sets when the token lapses, in whole seconds, and returns it as the
// wire has it.
func (s *Server) expire(c *claims, in int) string {
	at := s.options.Now().Add(seconds(in) + time.Second - 1).Truncate(time.Second)
	c.Expires = at.Unix()
	return at.UTC().Format(timeForm)
}

var (
	tokenForm = base64.RawURLEncoding.Strict()
	tokenHead = tokenForm.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`))
)

func (s *Server) sign(ctx context.Context, c claims) (string, error) {
	key, err := s.store.signingKey(ctx)
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	signed := tokenHead + "." + tokenForm.EncodeToString(body)
	return signed + "." + tokenForm.EncodeToString(seal(key, signed)), nil
}

func seal(key []byte, text string) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(text))
	return mac.Sum(nil)
}

// verify reads a token for an audience. What is wrong with it is errToken, or
// errExpired beside the claims.
func (s *Server) verify(ctx context.Context, token, audience string) (claims, error) {
	key, err := s.store.signingKey(ctx)
	if err != nil {
		return claims{}, err
	}
	i := strings.LastIndexByte(token, '.')
	if i < 0 {
		return claims{}, errToken
	}
	head, body, _ := strings.Cut(token[:i], ".")
	sum, err := tokenForm.DecodeString(token[i+1:])
	if err != nil || head != tokenHead || !hmac.Equal(sum, seal(key, token[:i])) {
		return claims{}, errToken
	}
	var c claims
	text, err := tokenForm.DecodeString(body)
	if err != nil || json.Unmarshal(text, &c) != nil || c.Audience != audience {
		return claims{}, errToken
	}
	if c.Expires != 0 && s.options.Now().Unix() >= c.Expires {
		return c, errExpired
	}
	return c, nil
}

const keySize = 32

// signingKey reads the key of tokens, which is made when it is first needed.
func (st *store) signingKey(ctx context.Context) (key []byte, err error) {
	path := filepath.Join(st.dir, "key")
	if key, err = os.ReadFile(path); err == nil && len(key) == keySize {
		return key, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	err = st.update(ctx, func() (err error) {
		if key, err = os.ReadFile(path); err == nil && len(key) == keySize {
			return nil
		}
		key = make([]byte, keySize)
		rand.Read(key) // never fails
		if err := os.WriteFile(path+newSuffix, key, 0o600); err != nil {
			return err
		}
		return os.Rename(path+newSuffix, path)
	})
	return key, err
}
