"use strict";
// Every word of the page, in both languages.
const WORDS = {
  en: {
    conversation: "Conversation", user: "You", assistant: "Model", problem: "Problem", done: "Reply",
    speedup: "plain speed expected", edit: "Edit", earlier: "Earlier version", later: "Later version", rounds: "Draft tokens accepted in the last rounds",
    new: "New chat", dismiss: "Dismiss", settings: "Settings", system: "System prompt", temperature: "Temperature (0: greedy)",
    top_p: "Top p", max_tokens: "Longest reply, tokens", seed: "Seed (empty: drawn)", length: "Draft tokens a round (empty: auto)",
    key: "API key", draft: "Use the drafter", tint: "Tint accepted draft tokens", language: "Language", theme: "Colours",
    auto: "as the system", light: "light", dark: "dark", message: "Message", again: "Regenerate", stop: "Stop (Esc)",
    send: "Send (Enter)", tokens: "tokens", speed: "tokens/s", accepted: "accepted", nodraft: "no draft",
    placeholder: "Write a message. Shift+Enter makes a new line.", failed: "The server could not be reached.",
    notice: "This model may have no safety alignment: it can write things that are wrong or harmful. Use it in controlled settings only.",
  },
  es: {
    conversation: "Conversación", user: "Tú", assistant: "Modelo", problem: "Problema", done: "Respuesta",
    speedup: "la velocidad sin borrador, según lo previsto", edit: "Editar", earlier: "Versión anterior", later: "Versión siguiente",
    rounds: "Tokens de borrador aceptados en las últimas rondas",
    new: "Nuevo chat", dismiss: "Cerrar", settings: "Ajustes", system: "Instrucción de sistema",
    temperature: "Temperatura (0: voraz)", top_p: "Top p", max_tokens: "Respuesta máxima, tokens",
    seed: "Semilla (vacía: al azar)", length: "Tokens de borrador por ronda (vacío: auto)", key: "Clave de la API",
    draft: "Usar el modelo borrador", tint: "Resaltar tokens de borrador aceptados", language: "Idioma", theme: "Colores",
    auto: "como el sistema", light: "claro", dark: "oscuro", message: "Mensaje", again: "Regenerar", stop: "Parar (Esc)",
    send: "Enviar (Intro)", tokens: "tokens", speed: "tokens/s", accepted: "aceptados", nodraft: "sin borrador",
    placeholder: "Escribe un mensaje. Mayús+Intro hace una línea nueva.", failed: "No se pudo contactar con el servidor.",
    notice: "Este modelo puede no tener alineación de seguridad: puede escribir cosas falsas o dañinas. Úsalo solo en entornos controlados.",
  },
};
