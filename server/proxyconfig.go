package server

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/sbx-star/sbx-star/wire"
)

// This file defines proxy_config (protocol.md §2.11, §16.6). This server has no
// egress proxy. One that is to do what it can keeps the configuration, sets the
// variables of its rules, and tells secrets to nobody; any other refuses it.

// decodeAt reads the field of a body into a type. Null and {} ask for nothing,
// which is reported.
func decodeAt(field string, raw json.RawMessage, into any) (asked bool, err error) {
	if len(raw) == 0 || string(raw) == "null" {
		return false, nil
	}
	err = json.Unmarshal(raw, into)
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		wrong.Value, _, _ = strings.Cut(wrong.Value, " ") // less the number, which may be meant as a secret
		return true, mistyped(wrong, raw, "body", field)
	}
	if err != nil {
		return true, invalid("body."+field, "not JSON: %v", err)
	}
	var fields map[string]any
	err = json.Unmarshal(raw, &fields)
	return len(fields) > 0, err
}

// proxyConfig reads and checks the field of a body; nil is none.
func (s *Server) proxyConfig(raw json.RawMessage) (*wire.ProxyConfig, error) {
	var config wire.ProxyConfig
	asked, err := decodeAt("proxy_config", raw, &config)
	if err != nil || !asked {
		return nil, err
	}
	var hosted hostedProxy
	if _, err := decodeAt("proxy_config", raw, &hosted); err != nil {
		return nil, err
	}
	const at = "body.proxy_config."
	if a := config.AccessControl; a != nil && len(a.AllowList) > 0 && len(a.DenyList) > 0 {
		return nil, invalid(at+"access_control", "allow_list and deny_list exclude each other")
	}
	for i, rule := range config.Rules {
		at := at + "rules." + strconv.Itoa(i)
		if strings.TrimSpace(rule.Name) == "" {
			return nil, invalid(at+".name", "a rule needs a name")
		}
		if err := checkEnv(at+".env_vars", rule.EnvVars); err != nil {
			return nil, err
		}
		if err := checkAWS(at+".aws", rule.AWS); err != nil {
			return nil, err
		}
	}
	if !s.options.BestEffort {
		return nil, unsupported("proxy_config", "this server has no egress proxy; start it with --best-effort to have the configuration kept and the variables of its rules set, without it")
	}
	if err := hosted.refuse(); err != nil {
		return nil, err
	}
	config.NoProxy = nil // which is ignored since §16.10
	if config.Rules == nil {
		config.Rules = []wire.ProxyRule{}
	}
	return &config, nil
}

// hostedProxy is what only the hosted service can do with a configuration
// (protocol.md §2.11, §16.10), and what would be lost here.
type hostedProxy struct {
	Callbacks []any `json:"callbacks"`
	Rules     []struct {
		Type         string `json:"type"`
		Azure        any    `json:"azure"`
		RelayID      any    `json:"relay_id"`
		Rewrite      any    `json:"rewrite"`
		SubjectScope any    `json:"subject_scope"`
		GCP          struct {
			WorkloadIdentityProvider any `json:"workload_identity_provider"`
		} `json:"gcp"`
	} `json:"rules"`
}

func (h *hostedProxy) refuse() error {
	const only = "only the hosted service can do this: leave it out"
	if err := refuse(refusal{"proxy_config.callbacks", len(h.Callbacks) > 0, only}); err != nil {
		return err
	}
	for i, rule := range h.Rules {
		at := "proxy_config.rules." + strconv.Itoa(i)
		switch rule.Type {
		case "", "aws", "gcp":
		default:
			return unsupported(at+".type", "this server keeps header, aws and gcp rules, and none of type "+strconv.Quote(rule.Type))
		}
		if err := refuse(
			refusal{at + ".azure", rule.Azure != nil, only},
			refusal{at + ".relay_id", rule.RelayID != nil, only},
			refusal{at + ".rewrite", rule.Rewrite != nil, only},
			refusal{at + ".subject_scope", rule.SubjectScope != nil, only},
			refusal{at + ".gcp.workload_identity_provider", rule.GCP.WorkloadIdentityProvider != nil, only},
		); err != nil {
			return err
		}
	}
	return nil
}

// hasRole reports whether a role takes the place of the keys; a blank one does not.
func hasRole(a *wire.AWSCredentials) bool { return strings.TrimSpace(a.RoleARN) != "" }

// checkAWS checks what a rule signs requests by (protocol.md §16.10); nil is fine.
// The keys may be left out, since a change does so with those that it keeps.
func checkAWS(at string, a *wire.AWSCredentials) error {
	if a == nil {
		return nil
	}
	role := hasRole(a)
	switch {
	case role && (a.AccessKeyID != wire.Secret{} || a.SecretAccessKey != wire.Secret{}):
		return invalid(at+".role_arn", "a role and keys exclude each other")
	case !role && len(a.SessionTags) > 0:
		return invalid(at+".session_tags", "session tags go with a role: give role_arn")
	case len(a.SessionTags) > 50:
		return invalid(at+".session_tags", "want 50 session tags at most, got %d", len(a.SessionTags))
	}
	for _, name := range slices.Sorted(maps.Keys(a.SessionTags)) {
		value := a.SessionTags[name]
		switch {
		case strings.TrimSpace(name) == "" || utf8.RuneCountInString(name) > 128:
			return invalid(at+".session_tags", "the session tag %.150q has no name of 1 to 128 characters", name)
		case strings.HasPrefix(name, "aws:") || strings.HasPrefix(name, "langsmith:"):
			return invalid(at+".session_tags", "the session tag %q has a reserved name: begin it with neither aws: nor langsmith:", name)
		case strings.TrimSpace(value) == "" || utf8.RuneCountInString(value) > 256:
			return invalid(at+".session_tags", "the session tag %q has no value of 1 to 256 characters", name)
		}
	}
	return nil
}

// place is where a configuration holds a secret: it stays the same when rules
// with other names change places.
type place struct {
	rule string
	nth  int // of the rules with that name
	what string
}

func secretsOf(config *wire.ProxyConfig) map[place]*wire.Secret {
	secrets, named := map[place]*wire.Secret{}, map[string]int{}
	for i := range config.Rules {
		rule := &config.Rules[i]
		nth := named[rule.Name]
		named[rule.Name]++
		if a := rule.AWS; a != nil && !hasRole(a) {
			secrets[place{rule.Name, nth, "id"}], secrets[place{rule.Name, nth, "key"}] = &a.AccessKeyID, &a.SecretAccessKey
		}
		if g := rule.GCP; g != nil {
			secrets[place{rule.Name, nth, "account"}] = &g.ServiceAccountJSON
		}
	}
	return secrets
}

const plaintext = "plaintext" // a header that is no secret

// carryOver takes over from before the opaque values that a new configuration
// leaves out.
func carryOver(config, before *wire.ProxyConfig) {
	if config == nil || before == nil {
		return
	}
	old := secretsOf(before)
	for place, secret := range secretsOf(config) {
		if was := old[place]; was != nil && secret.Value == "" && secret.Type == was.Type {
			secret.Value = was.Value
		}
	}
	values := map[string]string{}
	for _, rule := range before.Rules {
		for _, h := range rule.Headers {
			values[rule.Name+"/"+h.Type+"/"+h.Name] = h.Value
		}
	}
	for _, rule := range config.Rules {
		for i, h := range rule.Headers {
			if h.Value == "" && h.Type != plaintext {
				rule.Headers[i].Value = values[rule.Name+"/"+h.Type+"/"+h.Name]
			}
		}
	}
}

// redacted is a configuration as it is answered (protocol.md §13 #28): of a secret
// its type, and whether it has a value.
func redacted(config *wire.ProxyConfig) *wire.ProxyConfig {
	if config == nil {
		return nil
	}
	v := *config
	v.Rules = slices.Clone(config.Rules)
	for i := range v.Rules {
		rule := &v.Rules[i]
		if rule.AWS != nil {
			aws := *rule.AWS
			rule.AWS = &aws
		}
		if rule.GCP != nil {
			gcp := *rule.GCP
			rule.GCP = &gcp
		}
		rule.Headers = slices.Clone(rule.Headers)
		for i, h := range rule.Headers {
			if h.Type != plaintext {
				set := h.Value != ""
				rule.Headers[i].Value, rule.Headers[i].IsSet = "", &set
			}
		}
	}
	for _, secret := range secretsOf(&v) {
		set := secret.Value != ""
		secret.Value, secret.IsSet = "", &set
	}
	return &v
}

// ruleEnv are the variables of the rules that are enabled.
func ruleEnv(config *wire.ProxyConfig) map[string]string {
	env := map[string]string{}
	if config != nil {
		for _, rule := range config.Rules {
			if rule.Enabled == nil || *rule.Enabled {
				maps.Copy(env, rule.EnvVars)
			}
		}
	}
	return env
}
