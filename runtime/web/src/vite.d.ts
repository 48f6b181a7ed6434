declare module "*.css";

/** Version of the wllama that is shipped; see vite.config.ts. */
declare const __WLLAMA__: string;
